"""A segmenter asked about every picture of a split, each pixel compared with its mask at the picture's own size.

Nothing is kept of a picture but its counts, except where surfaces are measured: there a case's labels stay until its
last picture is done. Distances are millimetres if the spacing of every case is known, else pixels. Pixels that do not
count belong to no class, in truth and answer alike.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from swindow.data import Scenes, align_classes
from swindow.data.legends import palette
from swindow.distributed import ALONE, Ranks
from swindow.errors import DataError, TrainingDiverged
from swindow.evaluation.cases import Case, Labels
from swindow.evaluation.reading import read_ahead
from swindow.evaluation.segmentation import CaseScore, ImageScore, SegmentationEvaluation
from swindow.evaluation.sharing import gathered, share_of_cases
from swindow.images import name_of
from swindow.inference import ReadyModel
from swindow.metrics import confusion_of_pixels, dice_scores, mean_of_known, pixel_accuracy, pixel_scores
from swindow.progress import Progress
from swindow.rasters import InMemory
from swindow.shapes import IGNORE
from swindow.sliding import Region, Segmenter, Views, most_probable

_WAITING = 64 * 2**20  # bytes of resized pictures that wait for others of their size


def judge_segmenter(
    asked: ReadyModel,
    scenes: Scenes,
    *,
    split: str,
    views: Views,
    surfaces: bool | None,
    progress: Progress,
    ranks: Ranks = ALONE,
) -> SegmentationEvaluation:
    """Ask a segmenter about every picture, and compare with its mask; each of several processes judges its cases.

    Raises:
        ConfigError: views that this model cannot have.
        DataError: a picture or mask that cannot be read, classes that the model does not have, or nothing that counts.
        TrainingDiverged: the model answers with numbers that are not finite.
    """
    scenes = _aligned(scenes, asked)
    surfaces = scenes.background is not None if surfaces is None else surfaces
    rows = share_of_cases(scenes.cases, ranks)

    def judge() -> _Found:
        tally = _Tally(scenes, surfaces=surfaces)
        progress.begin(f"evaluate {split}", len(rows))
        try:
            for index, truth, regions in _answers(Segmenter(asked, views), scenes, rows):
                tally.add(index, truth.to(asked.device), regions)
                progress.advance(1)
        finally:
            progress.end()
        return tally.found

    tally = _Tally(scenes, surfaces=surfaces)
    for found in gathered(ranks, judge):
        tally.found.take(found)
    return tally.result(split)


def _aligned(scenes: Scenes, asked: ReadyModel) -> Scenes:
    """Masks in the model's classes, in its colours."""
    classes, colours = asked.classes, asked.model.colours
    if scenes.classes == classes:
        return scenes if colours is None else dataclasses.replace(scenes, colours=colours)
    order = align_classes(scenes.classes, classes)
    background = None if scenes.background is None else int(order[scenes.background])
    return scenes.aligned(order, classes, colours or palette(len(classes), background))


def _answers(
    segmenter: Segmenter, scenes: Scenes, rows: Sequence[int]
) -> Iterator[tuple[int, Tensor, Iterator[Region]]]:
    """Each picture's number, mask and logits; small pictures that become inputs of one size are asked together."""
    preprocess = segmenter.asked.preprocess
    waiting: dict[tuple[int, ...], list[tuple[int, Tensor, Tensor]]] = defaultdict(list)
    for index, pixels, truth in read_ahead(scenes, rows):
        height, width = truth.shape
        if not segmenter.sees_whole(height, width):
            yield index, truth, segmenter.regions(InMemory(pixels), on_cpu=False)
            continue
        resized = preprocess.resize(pixels, limits=scenes.limits)
        size = (resized.shape[1], resized.shape[2])
        waiting[size].append((index, truth, resized))
        if len(waiting[size]) >= segmenter.at_once(*size):
            yield from _together(segmenter, waiting.pop(size))
        elif sum(len(group) * group[0][2].numel() for group in waiting.values()) > _WAITING:
            yield from _together(segmenter, waiting.pop(max(waiting, key=lambda size: len(waiting[size]))))
    for group in waiting.values():
        yield from _together(segmenter, group)


def _together(
    segmenter: Segmenter, group: list[tuple[int, Tensor, Tensor]]
) -> Iterator[tuple[int, Tensor, Iterator[Region]]]:
    """Answers to pictures whose inputs are of one size."""
    maps = segmenter.see(torch.stack([resized for _, _, resized in group]))
    for place, (index, truth, _) in enumerate(group):
        yield index, truth, segmenter.restored(maps[place : place + 1], (truth.shape[0], truth.shape[1]))


class _Found:
    """What was found out about some pictures of a set."""

    def __init__(self, num_classes: int) -> None:
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        self.losses: dict[int, float] = {}
        """Sums over a picture's pixels."""
        self.images: dict[int, ImageScore] = {}
        self.cases: dict[str, CaseScore] = {}

    def take(self, other: "_Found") -> None:
        """Add what was found out about other pictures."""
        self.confusion += other.confusion
        self.losses |= other.losses
        self.images |= other.images
        self.cases |= other.cases

    @property
    def loss(self) -> float:
        """Sum over all pixels, added up in the same order whoever judged which picture."""
        return sum(self.losses[index] for index in sorted(self.losses))


class _Tally:
    """What is known so far of a set, of its pictures, and of the cases that are not complete yet."""

    def __init__(self, scenes: Scenes, *, surfaces: bool) -> None:
        self.scenes, self.surfaces = scenes, surfaces
        self.num_classes = len(scenes.classes)
        self.found = _Found(self.num_classes)
        self.missing = Counter(scenes.cases)
        self.known_spacing = all(case in scenes.spacings for case in self.missing)
        self.open: dict[str, Case] = {}

    def add(self, index: int, truth: Tensor, regions: Iterator[Region]) -> None:
        """Compare one picture's logits with its mask."""
        confusion, loss = np.zeros_like(self.found.confusion), 0.0
        answer = torch.empty(truth.shape, dtype=torch.int16)
        try:
            for top, left, logits in regions:
                rows, columns = slice(top, top + logits.shape[1]), slice(left, left + logits.shape[2])
                labels, there = most_probable(logits), truth[rows, columns]
                confusion += confusion_of_pixels(labels, there, self.num_classes)
                loss += _entropy(logits, there)
                if self.surfaces:
                    answer[rows, columns] = labels.to("cpu", torch.int16)
                del logits
        except TrainingDiverged as error:
            raise TrainingDiverged(f"{name_of(self.scenes.names[index])}: {error}") from error
        self.found.confusion += confusion
        self.found.losses[index] = loss
        self.found.images[index] = self._image(index, confusion)
        name = self.scenes.cases[index]
        case = self.open.setdefault(name, Case(self.num_classes))
        case.confusion += confusion
        if self.surfaces:
            mask = truth.to("cpu", torch.int16)
            answer.masked_fill_(mask == IGNORE, IGNORE)
            case.pictures.append(Labels(str(self.scenes.names[index]), mask.numpy(), answer.numpy()))
        self.missing[name] -= 1
        if not self.missing[name]:
            self._close(name, self.open.pop(name))

    def result(self, split: str) -> SegmentationEvaluation:
        """All of it.

        Raises:
            DataError: not one pixel counts, or there is a background and nothing else.
        """
        scenes, found, pixels = self.scenes, self.found, int(self.found.confusion.sum())
        if not pixels:
            raise DataError(
                f"not one pixel of the {split} split's {len(scenes):,} masks counts: all are ignored; check the masks, "
                f"masks.ignore_index and reduce_zero_label"
            )
        objects = np.delete(found.confusion.sum(axis=1), [] if scenes.background is None else scenes.background)
        if not objects.any():
            raise DataError(
                f"the {split} split's {len(scenes):,} masks show nothing but {scenes.classes[scenes.background or 0]}; "
                f"without an object there is nothing to score: add pictures that have one"
            )
        cases = tuple(found.cases[name] for name in dict.fromkeys(scenes.cases))
        per_class = tuple(
            dataclasses.replace(
                score, dice=mean_of_known(c.dice[k] for c in cases), hd95=mean_of_known(c.hd95[k] for c in cases)
            )
            for k, score in enumerate(pixel_scores(found.confusion, scenes.classes))
        )
        return SegmentationEvaluation(
            split=split,
            classes=scenes.classes,
            colours=scenes.colours,
            background=scenes.background,
            count=len(scenes),
            loss=found.loss / pixels,
            confusion=found.confusion,
            per_class=per_class,
            mean_iou=mean_of_known(score.iou for score in per_class) or 0.0,
            mean_accuracy=mean_of_known(score.accuracy for score in per_class) or 0.0,
            pixel_accuracy=pixel_accuracy(found.confusion) or 0.0,
            mean_dice=mean_of_known(score.dice for k, score in enumerate(per_class) if k != scenes.background),
            hd95_unit=("mm" if self.known_spacing else "pixels") if self.surfaces else None,
            per_image=tuple(found.images[index] for index in range(len(scenes))),
            per_case=cases,
        )

    def _image(self, index: int, confusion: np.ndarray) -> ImageScore:
        overlaps = [score.iou for score in pixel_scores(confusion, self.scenes.classes)]
        objects = [iou for k, iou in enumerate(overlaps) if k != self.scenes.background]
        return ImageScore(
            name=str(self.scenes.names[index]),
            case=self.scenes.cases[index],
            mean_iou=mean_of_known(overlaps),
            pixel_accuracy=pixel_accuracy(confusion),
            score=mean_of_known(objects),
        )

    def _close(self, name: str, case: Case) -> None:
        far: tuple[float | None, ...] = (None,) * self.num_classes
        if self.surfaces:
            spacing = self.scenes.spacings[name] if self.known_spacing else (1.0, 1.0, 1.0)
            objects = (k for k in range(self.num_classes) if k != self.scenes.background)
            found = {k: case.hausdorff95(k, spacing) for k in objects}
            far = tuple(found.get(k) for k in range(self.num_classes))
        self.found.cases[name] = CaseScore(case=name, dice=dice_scores(case.confusion), hd95=far)


@torch.inference_mode()
def _entropy(logits: Tensor, truth: Tensor) -> float:
    """Sum of the cross-entropy of the pixels that count, a few rows of logits at a time.

    Raises:
        TrainingDiverged: it is not finite.
    """
    total, rows = 0.0, max(1, 2**20 // (logits.shape[0] * logits.shape[2]))
    for top in range(0, logits.shape[1], rows):
        part, there = logits[:, top : top + rows], truth[top : top + rows]
        right = part.gather(0, there.clamp(min=0)[None])[0]
        total += float((part.logsumexp(0) - right)[there != IGNORE].double().sum())
    if not np.isfinite(total):
        raise TrainingDiverged("the model's answer is not finite; try precision fp32, or an earlier checkpoint")
    return total
