"""Why a detector finds an object: which of those that it finds, and what speaks for that one."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor
from torch.nn import functional as F

from swindow.errors import ConfigError, DataError, TrainingDiverged
from swindow.explanation.gathering import Traces, array, follow, stage_maps, unit
from swindow.explanation.pixels import Question, frame_of
from swindow.explanation.results import Detected, Explanation, PointMaps
from swindow.explanation.tracing import Evidence, has_window_attention, object_evidence, trace, windowed
from swindow.heads import Detr
from swindow.heads.pyramid import strides_of
from swindow.inference import ReadyModel, evaluating
from swindow.model import Model
from swindow.objects import Detections, Frames
from swindow.ops.windows import Size, count
from swindow.overlays import colours_of
from swindow.shapes import Images, Pixels

SURE = 0.5
"""The score from which an object is taken for one that is meant by a point."""


class DecoderAttention(NamedTuple):
    """What a query takes from each cell of the map that a DETR's decoder reads, by layer; no layer without a DETR."""

    layers: tuple[Float[ndarray, "H W"], ...]
    stride: int
    """Side of a cell, in pixels of the model's input."""


def explain_object(one: ReadyModel, photo: Pixels, name: str, asked: Question) -> Explanation:
    """`swindow.explain` for a detector.

    Raises:
        ConfigError: a preprocessing that leaves parts of the picture out or adds a border, or an object that is not
            among those found.
        DataError: nothing is found.
    """
    size = (photo.shape[1], photo.shape[2])
    choose = functools.partial(chosen_of, asked=asked, classes=one.classes, size=size, name=name)
    with evaluating(one.model):
        images, frames = padded(one, photo)
        found, chosen, evidence = object_evidence(one.model, images, frames, choose)
        found = found.cpu().resized(size)
        frame, strides = frame_of(one.preprocess, size), one.model.backbone.config.strides[: len(evidence)]
        x, y = _middle(found, chosen)
        tokens = [frame.token(x, y, stride) for stride in strides]
        traces: Traces = []
        if has_window_attention(one.model):
            traces = trace(windowed(one.model), images, tokens, frames.sizes[0])
        query = None if found.queries is None else int(found.queries[chosen])
        attention = _decoder_attention(one.model, images, frames, query)
    stages = follow(traces, tokens)
    stage = asked.stage if asked.stage_chosen else _telling(one.model, evidence)
    laid = zip(evidence, strides, strict=True)
    return Explanation(
        name=name,
        photo=photo.permute(1, 2, 0).numpy(),
        frame=frame,
        prediction=tuple(_named(found, one.classes)[:5]),
        target=one.classes[int(found.labels[chosen])],
        probability=float(found.scores[chosen]),
        gradcam=unit(frame.lay(array(evidence[stage].averaged), strides[stage])),
        gradcam_stage=stage,
        rollout=stages[-1].rollout if stages else None,
        stages=tuple(map(stage_maps, traces, strides)),
        point=PointMaps(x=x, y=y, chosen=False, stages=stages),
        detected=Detected(
            found=found,
            chosen=chosen,
            classes=one.classes,
            colours=colours_of(one.classes, one.model.colours),
            hirescam=tuple(unit(frame.lay(array(found.local), stride)) for found, stride in laid),
            attention=attention.layers,
            stride=attention.stride,
        ),
        note="" if traces else f"The backbone of {one.model.config.name} has no window attention to show.",
    )


def padded(one: ReadyModel, photo: Pixels) -> tuple[Float[Tensor, "1 C _ _"], Frames]:
    """A picture as the model takes it, alone, with zeros to the right and below up to the sides that the head needs.

    Raises:
        ConfigError: the model does not see the whole picture, or something beside it.
    """
    if one.preprocess.fit in ("crop", "pad"):
        raise ConfigError(
            f"preprocess fit {one.preprocess.fit!r} is not for detectors, which see whole pictures and nothing else; "
            "choose within, native, short or squash"
        )
    image = one.preprocess(photo)[None].to(next(one.model.parameters()))
    canvas = one.canvas([(photo.shape[1], photo.shape[2])])
    below, right = canvas[0] - image.shape[2], canvas[1] - image.shape[3]
    return F.pad(image, (0, right, 0, below)), Frames(canvas, ((image.shape[2], image.shape[3]),))


def chosen_of(found: Detections, asked: Question, classes: Sequence[str], size: Size, name: str) -> int:
    """The rank of the object that is asked about, of those that are found; `size` is that of the picture.

    Raises:
        ConfigError: it is not among them.
        DataError: nothing is found.
        TrainingDiverged: boxes or scores that are not finite.
    """
    if not (found.boxes.isfinite().all() and found.scores.isfinite().all()):
        raise TrainingDiverged(f"{name}: the model's answer is not finite; try an earlier checkpoint")
    if not len(found):
        raise DataError(
            f"{name}: the model finds nothing here, so there is no object to explain; give another picture, or another "
            "size if its objects are much smaller or larger than those that the model was trained on"
        )
    meant = torch.arange(len(found), device=found.labels.device)
    if asked.target is not None:
        meant = meant[found.labels == asked.target]
        _refuse_unless(len(meant), f"no {classes[asked.target]!r} is found in {name}", _summary(found, classes))
    if asked.point is not None:
        boxes = found.resized(size).boxes[meant]
        meant = meant[_holding(boxes, asked.point)]
        x, y = asked.point
        _refuse_unless(len(meant), f"point ({x}, {y}) lies in no box of {name}", _summary(found, classes))
        return _meant_by_point(found.resized(size), meant)
    rank = asked.object or 0
    if rank >= len(meant):
        what = "objects" if asked.target is None else f"objects of class {classes[asked.target]!r}"
        raise ConfigError(f"object {rank} is not one of the {len(meant)} {what} found in {name}, which count from 0")
    return int(meant[rank])


def _meant_by_point(found: Detections, meant: Tensor) -> int:
    """Of objects around a point the smallest that is sure, or if none is, the surest."""
    sure = meant[found.scores[meant] >= SURE]
    if not len(sure):
        return int(meant[0])
    sides = found.boxes[sure, 2:] - found.boxes[sure, :2]
    return int(sure[sides.prod(1).argmin()])


def _holding(boxes: Float[Tensor, "N 4"], point: tuple[int, int]) -> Bool[Tensor, " N"]:
    """The boxes that the middle of a pixel (x, y) lies in."""
    middle = boxes.new_tensor(point) + 0.5
    return ((boxes[:, :2] <= middle) & (middle < boxes[:, 2:])).all(1)


def _refuse_unless(there: int, wrong: str, found: str) -> None:
    if not there:
        raise ConfigError(f"{wrong}, where the model finds {found}; ask about one of these")


def _summary(found: Detections, classes: Sequence[str]) -> str:
    """How many objects of which classes, the most frequent first."""
    counts = torch.bincount(found.labels.cpu(), minlength=len(classes))
    named = [f"{classes[k]!r} ({counts[k]})" for k in counts.argsort(descending=True, stable=True) if counts[k]]
    return ", ".join(named[:5]) + (f" and {len(named) - 5} more classes" if len(named) > 5 else "")


def _telling(model: Model, evidence: Sequence[Evidence]) -> int:
    """The stage whose map has most of the evidence; a DETR reads its last one alone.

    Feature pyramids judge small boxes by fine maps, where the last one has next to nothing to say.
    """
    if isinstance(model.head, Detr):
        return len(evidence) - 1
    return int(torch.stack([found.local.sum() for found in evidence]).argmax())


def _middle(found: Detections, chosen: int) -> tuple[int, int]:
    """The pixel (x, y) in the middle of a box."""
    x1, y1, x2, y2 = found.boxes[chosen].tolist()
    height, width = found.size
    return min(max(int((x1 + x2) / 2), 0), width - 1), min(max(int((y1 + y2) / 2), 0), height - 1)


def _named(found: Detections, classes: Sequence[str]) -> list[tuple[str, float]]:
    return [(classes[k], score) for k, score in zip(found.labels.tolist(), found.scores.tolist(), strict=True)]


@torch.no_grad()
def _decoder_attention(model: Model, images: Images, frames: Frames, query: int | None) -> DecoderAttention:
    """What a DETR's query attends to in each layer, less what was padded, and the side of a cell in pixels."""
    head, body = model.head, model.backbone
    if not isinstance(head, Detr):
        return DecoderAttention((), 1)
    # A head makes maps of one stride into a pyramid, of which its queries look at the coarsest.
    stride = body.strides[-1] if head.pyramid is None else int(strides_of(body.strides[-1], len(body.strides))[-1])
    rows, columns = (count(side, stride) for side in frames.sizes[0])
    seen = head.attention(body(images), frames)[:, 0, query, :rows, :columns]
    return DecoderAttention(tuple(map(array, seen)), stride)
