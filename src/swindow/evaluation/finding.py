"""A detector asked about every picture of a split, in small groups, and its answers compared with the objects there.

Pictures that are wide wait for others that are wide, tall ones for tall ones: a group shares a canvas, and what none of
its pictures covers is asked for nothing. Of a picture nothing is kept but boxes, scores, and masks in runs.
"""

import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence

from torch import Tensor

from swindow.data import Annotated, align_classes
from swindow.data.legends import palette
from swindow.distributed import ALONE, Ranks
from swindow.errors import DataError, TrainingDiverged
from swindow.evaluation.detection import DetectionEvaluation, FoundScore, object_scores
from swindow.evaluation.reading import read_ahead
from swindow.evaluation.sharing import gathered, share_of_rows
from swindow.images import name_of
from swindow.inference import ReadyModel
from swindow.metrics import Counts, DetectionMetrics, ObjectMatches
from swindow.objects import Detections, Objects
from swindow.progress import Progress

_AT_ONCE = 2**22  # pixels of a canvas times its pictures: four of 800 × 1333

Pair = tuple[int, Tensor, Objects]


def judge_detector(
    asked: ReadyModel,
    images: Annotated,
    *,
    split: str,
    batch: int,
    threshold: float | None,
    progress: Progress,
    ranks: Ranks = ALONE,
) -> DetectionEvaluation:
    """Ask a detector about every picture, and compare with its objects; each of several processes judges its share.

    Raises:
        DataError: a picture or annotation that cannot be read, classes that the model does not have, or no object.
        TrainingDiverged: the model answers with numbers that are not finite.
    """
    order = align_classes(images.classes, asked.classes)
    tally = _Tally(images.aligned(order, asked.classes), asked, judged=tuple(sorted(set(order.tolist()))))
    rows = share_of_rows(len(images), ranks)

    def judge() -> tuple[DetectionMetrics, ObjectMatches, list[int]]:
        progress.begin(f"evaluate {split}", len(rows))
        try:
            for group in _groups(tally.images, asked, batch, rows):
                for (index, _, objects), found in zip(group, _found(asked, tally.images, group), strict=True):
                    tally.add(index, objects, found)
                    progress.advance(1)
        finally:
            progress.end()
        return tally.metrics, tally.matches, tally.rows

    tally.put_together(gathered(ranks, judge))
    return tally.result(split, threshold)


def _groups(images: Annotated, asked: ReadyModel, batch: int, rows: Sequence[int]) -> Iterator[list[Pair]]:
    """Pictures to ask about together: at most `batch`, and as many as a canvas for all of them allows."""
    waiting: dict[bool, list[Pair]] = defaultdict(list)
    for pair in read_ahead(images, rows):
        tall = pair[1].shape[1] > pair[1].shape[2]
        group = [*waiting[tall], pair]
        height, width = asked.canvas([(pixels.shape[1], pixels.shape[2]) for _, pixels, _ in group])
        if len(group) > 1 and len(group) * height * width > _AT_ONCE:
            yield waiting.pop(tall)
            group = [pair]
        waiting[tall] = group
        if len(group) == batch:
            yield waiting.pop(tall)
    yield from (group for group in waiting.values() if group)


def _found(asked: ReadyModel, images: Annotated, group: list[Pair]) -> list[Detections]:
    try:
        return asked.detect([pixels for _, pixels, _ in group], limits=images.limits)
    except (DataError, TrainingDiverged):  # one of them: each alone tells which
        return [_alone(asked, images, *pair) for pair in group]


def _alone(asked: ReadyModel, images: Annotated, index: int, pixels: Tensor, _: Objects) -> Detections:
    try:
        return asked.detect([pixels], limits=images.limits)[0]
    except (DataError, TrainingDiverged) as error:
        raise type(error)(f"{name_of(images.names[index])}: {error}") from error


class _Tally:
    """What is known so far of a set."""

    def __init__(self, images: Annotated, asked: ReadyModel, judged: tuple[int, ...]) -> None:
        self.images, self.judged = images, judged
        self.colours = asked.model.colours or palette(len(images.classes))
        self.masks = images.has_masks and getattr(asked.model.config.head, "masks", False)
        self.metrics = DetectionMetrics(len(images.classes), masks=self.masks)
        self.matches = ObjectMatches(len(images.classes))
        self.rows: list[int] = []

    def add(self, index: int, objects: Objects, found: Detections) -> None:
        """Compare what was found in one picture with what is there."""
        if len(self.judged) < len(self.images.classes):
            found = found[_among(found.labels, self.judged)]
        self.metrics.update(objects, found, image_id=self.images.image_id(index))
        self.matches.update(objects, found)
        self.rows.append(index)

    def put_together(self, parts: Sequence[tuple[DetectionMetrics, ObjectMatches, list[int]]]) -> None:
        """Take what is known of the shares of a set for what is known of the whole."""
        (self.metrics, self.matches, self.rows), *others = parts
        for metrics, matches, rows in others:
            self.metrics.extend(metrics)
            self.matches.extend(matches)
            self.rows += rows

    def result(self, split: str, threshold: float | None) -> DetectionEvaluation:
        """All of it.

        Raises:
            DataError: there is no object to find.
        """
        cut = self.matches.best_threshold() if threshold is None else threshold
        per_class, counts = self.matches.per_class(cut), self.matches.per_image(cut)
        objects = sum(count.hits + count.misses for count in counts)
        if not objects:
            raise DataError(
                f"the {split} split's {len(self.images):,} images have no object, apart from crowds; without one there "
                "is nothing to score: add images that have some"
            )
        boxes, masks = self.metrics.compute()
        return DetectionEvaluation(
            split=split,
            classes=self.images.classes,
            colours=self.colours,
            judged=self.judged,
            count=len(self.images),
            objects=objects,
            boxes=boxes,
            masks=masks,
            threshold=cut,
            best_f1=threshold is None,
            per_class=object_scores(self.images.classes, per_class, boxes, masks),
            confusion=self.matches.confusion(cut),
            per_image=self._per_image(counts),
            results=functools.partial(self.metrics.results, self.images.category_ids),
        )

    def _per_image(self, counts: list[Counts]) -> tuple[FoundScore, ...]:
        by_row = dict(zip(self.rows, counts, strict=True))
        return tuple(
            FoundScore(
                name=str(self.images.names[row]),
                hits=by_row[row].hits,
                misses=by_row[row].misses,
                false_alarms=by_row[row].false_alarms,
                score=by_row[row].f1,
            )
            for row in range(len(self.images))
        )


def _among(labels: Tensor, wanted: tuple[int, ...]) -> Tensor:
    return labels.new_tensor(wanted)[:, None].eq(labels).any(dim=0)
