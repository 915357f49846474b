"""Why a segmenter sees a class at a pixel: which pixel, which class, which part of a large picture, and the answer."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from numpy import ndarray
from torch import Tensor

from swindow.backbones import WindowedBackbone
from swindow.errors import ConfigError, require
from swindow.explanation.frame import Frame
from swindow.explanation.gathering import array, best, follow, follow_decoder, stage_maps, unit
from swindow.explanation.results import Explanation, PointMaps, Segmented
from swindow.explanation.tracing import has_window_attention, pixel_evidence, trace_segmenter
from swindow.heads import UNet
from swindow.inference import ReadyModel, evaluating
from swindow.model import Model
from swindow.ops.windows import Size
from swindow.overlays import background_of, colours_of
from swindow.preprocess import Preprocess
from swindow.rasters import InMemory
from swindow.shapes import Images, Pixels
from swindow.sliding import WHOLE, Region, Segmenter, Views, most_probable


class Question(NamedTuple):
    """What is asked: a pixel (x, y), a class and a stage; or all pixels of the class; or an object by its rank."""

    point: tuple[int, int] | None
    target: int | None
    stage: int
    region: bool = False
    object: int | None = None
    stage_chosen: bool = True


class Survey(NamedTuple):
    """The predicted class of each pixel and a probability: that of the class asked about, or of the predicted one."""

    labels: Integer[ndarray, "h w"]
    confidence: Float[ndarray, "h w"]


class View(NamedTuple):
    """The part of a picture that is explained, how the model takes it, and where it begins (x, y)."""

    photo: Pixels
    one: ReadyModel
    origin: tuple[int, int]

    @property
    def size(self) -> Size:
        """Height and width of the part."""
        return self.photo.shape[1], self.photo.shape[2]

    def images(self) -> Images:
        """What the model takes."""
        return self.one.preprocess(self.photo)[None].to(next(self.one.model.parameters()))

    def answers(self) -> Iterator[Region]:
        """The logits of the photo's pixels, in bands, from the photo seen in one piece."""
        with evaluating(self.one.model), torch.no_grad():
            return self.restored(self.one.model(self.images()))

    def restored(self, logits: Float[Tensor, "1 K h w"]) -> Iterator[Region]:
        """Logits of the model's input at the photo's pixels, in bands."""
        return Segmenter(self.one, Views(mode="whole")).restored(logits.float().cpu(), self.size)


def explain_pixel(one: ReadyModel, photo: Pixels, name: str, asked: Question) -> Explanation:
    """`swindow.explain` for a segmenter.

    Raises:
        ConfigError: a preprocessing that leaves parts of the picture out, or a region of a class that is nowhere.
    """
    picture = View(photo, one, (0, 0))
    view, target, point = _seen_at_once(picture, asked.target, asked.point)
    found = survey(view.answers(), view.size, target)
    if target is None:
        target = most_covered(found.labels, one.classes) if point is None else int(found.labels[point[1], point[0]])
    if asked.region and target not in found.labels:
        raise ConfigError(
            f"no pixel is predicted as {one.classes[target]!r}, so it has no region to explain; give another target, "
            "or leave region out to explain one pixel"
        )
    x, y = clearest(found, target) if point is None else point
    answer = Segmented(
        mask=found.labels,
        classes=one.classes,
        colours=colours_of(one.classes, one.model.colours),
        region=asked.region,
        picture=picture.size,
        origin=view.origin,
        hirescam=(),
    )
    followed = PointMaps(x=x, y=y, chosen=asked.point is not None, stages=())
    return _explained(view, name, (target, asked.stage), answer, followed)


def _seen_at_once(
    picture: View, target: int | None, point: tuple[int, int] | None
) -> tuple[View, int | None, tuple[int, int] | None]:
    """The picture; of one of more than four windows' area the window around the point, which is then chosen."""
    segmenter, preprocess = Segmenter(picture.one), picture.one.preprocess
    most = WHOLE * math.prod(preprocess.size)
    if preprocess.fit not in ("native", "short") or math.prod(preprocess.input_size(*picture.size)) <= most:
        return picture, target, point
    if point is None:
        found = survey(segmenter.regions(InMemory(picture.photo)), picture.size, target)
        target = most_covered(found.labels, picture.one.classes) if target is None else target
        point = clearest(found, target)
    view = around(picture, point)
    return view, target, (point[0] - view.origin[0], point[1] - view.origin[1])


def _explained(view: View, name: str, subject: tuple[int, int], answer: Segmented, point: PointMaps) -> Explanation:
    """Everything about a class and a stage at a point of a view."""
    model, (target, stage) = view.one.model, subject
    body, frame = model.backbone, frame_of(view.one.preprocess, view.size)
    strides = body.config.strides
    tokens = [frame.token(point.x, point.y, stride) for stride in strides]
    inside = answer.mask == target if answer.region else None
    with evaluating(model):
        images = view.images()
        evidence = pixel_evidence(model, images, score(view, target, (point.x, point.y), inside))
        encoder, decoder, logits = trace_segmenter(model, images, tokens)
    shares = _logits_at(view.restored(logits), point.x, point.y).softmax(0)
    laid = zip(evidence, strides, strict=True)
    local = tuple(unit(frame.lay(array(found.local), stride)) for found, stride in laid)
    entries = isinstance(body, WindowedBackbone) and body.entries
    joined = follow_decoder(encoder, decoder, tokens, entries=entries)
    point = dataclasses.replace(point, stages=follow(encoder, tokens), decoder=joined)
    return Explanation(
        name=name,
        photo=view.photo.permute(1, 2, 0).numpy(),
        frame=frame,
        prediction=best(shares, view.one.classes, 5),
        target=view.one.classes[target],
        probability=float(shares[target]),
        gradcam=unit(frame.lay(array(evidence[stage].averaged), strides[stage])),
        gradcam_stage=stage,
        rollout=(point.decoder or point.stages)[-1].rollout if encoder else None,
        stages=tuple(map(stage_maps, encoder, strides)),
        decoder=tuple(map(stage_maps, decoder, reversed(strides[:-1]))),
        point=point,
        segmented=dataclasses.replace(answer, hirescam=local),
        note=_missing(model),
    )


def _missing(model: Model) -> str:
    """What of an explanation this model has nothing for."""
    if has_window_attention(model):
        return ""
    decoder = "; that of its decoder is left out" if isinstance(model.head, UNet) else ""
    return f"The backbone of {model.config.name} has no window attention to show{decoder}."


def score(
    view: View, target: int, point: tuple[int, int], inside: Bool[ndarray, "h w"] | None
) -> Callable[[Tensor], Tensor]:
    """What Grad-CAM takes the gradient of: the class's logit at a pixel of the photo, or the sum of those `inside`."""

    def number(logits: Tensor) -> Tensor:
        restored = view.one.preprocess.restore(logits[:, target : target + 1], view.size)[0, 0]
        return restored[point[1], point[0]] if inside is None else restored[inside].sum()

    return number


def survey(regions: Iterable[Region], size: Size, target: int | None) -> Survey:
    """A segmenter's answer about a picture of this height and width, piece by piece."""
    labels, confidence = np.empty(size, np.uint16), np.empty(size, np.float32)
    for top, left, logits in regions:
        rows, columns = slice(top, top + logits.shape[1]), slice(left, left + logits.shape[2])
        shares = logits.softmax(0)
        labels[rows, columns] = most_probable(logits).numpy()
        confidence[rows, columns] = (shares.amax(0) if target is None else shares[target]).numpy()
    return Survey(labels, confidence)


def most_covered(labels: Integer[ndarray, "h w"], classes: tuple[str, ...]) -> int:
    """The class that most pixels are of; the background, known by its name, only where there is nothing else."""
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    background = background_of(classes)
    if background is not None and counts.sum() > counts[background]:
        counts[background] = 0
    return int(counts.argmax())


def clearest(found: Survey, target: int) -> tuple[int, int]:
    """The most confident pixel (x, y) of the largest connected region of a class; if it has none, of the picture.

    Raises:
        MissingExtra: scipy is not installed.
    """
    ndimage = require("scipy.ndimage", extra="train")
    regions, count = ndimage.label(found.labels == target)  # neighbours share a side
    sizes = np.bincount(regions.ravel())[1:]
    confidence = found.confidence if count == 0 else np.where(regions == sizes.argmax() + 1, found.confidence, -1)
    y, x = divmod(int(confidence.argmax()), confidence.shape[1])
    return x, y


def around(view: View, point: tuple[int, int]) -> View:
    """The window of the size that the model was trained on, as near around a pixel as the picture's edges allow."""
    preprocess, size = view.one.preprocess, view.size
    scale = preprocess.input_size(*size)[0] / size[0] if preprocess.fit == "short" else preprocess.zoom
    full = [max(1, round(side / scale)) for side in preprocess.size]
    height, width = (min(side, length) for side, length in zip(full, size, strict=True))
    top, left = (
        min(max(place - side // 2, 0), length - side)
        for place, side, length in zip(point[::-1], (height, width), size, strict=True)
    )
    shown = tuple(
        whole if side == most else max(1, round(side * scale))
        for whole, side, most in zip(preprocess.size, (height, width), full, strict=True)
    )
    stretched: Preprocess = dataclasses.replace(preprocess, size=(shown[0], shown[1]), fit="squash")
    return View(
        view.photo[:, top : top + height, left : left + width],
        dataclasses.replace(view.one, preprocess=stretched),
        (view.origin[0] + left, view.origin[1] + top),
    )


def frame_of(preprocess: Preprocess, photo: Size) -> Frame:
    """Where the model's input lies on a photo of this height and width."""
    top, left, height, width = preprocess.region(*photo)
    region = (float(top), float(left), float(height), float(width))
    return Frame(photo=photo, region=region, input=preprocess.input_size(*photo))


def _logits_at(bands: Iterable[Region], x: int, y: int) -> Float[Tensor, " K"]:
    """The logits of a pixel of the photo."""
    return next(band.logits[:, y - band.top, x] for band in bands if y < band.top + band.logits.shape[1])
