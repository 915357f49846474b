"""Why a Swin sees in a photo, or at a pixel of it, what it sees: attention, receptive fields and Grad-CAM, at any size.

`explain` walks through the model with its own public parts; nothing is hooked and nothing changed.

* `windows`: window attention stitched back to the token grid; chains of windows followed backwards
* `tracing`: one image through the model's parts
* `gathering`: from there to plain arrays; `pixels`: the questions that a segmenter is asked
* `frame`: maps laid back on the photo's pixels
* `results`: the arrays; `pictures`, `answers` (a segmenter's) and `page`: what `Explanation.save` draws
"""

import dataclasses
import re
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray

from swindow.data.volume_files import volume_suffix
from swindow.errors import ConfigError, DataError, UnknownName
from swindow.explanation.frame import Frame
from swindow.explanation.gathering import array, best, follow, pooled_rollout, stage_maps, unit
from swindow.explanation.pixels import Question, explain_pixel, frame_of
from swindow.explanation.results import Explanation, PointMaps, PointStage, Segmented, StageMaps
from swindow.explanation.tracing import grad_cam, trace, windowed
from swindow.images import Source, name_of, read_image
from swindow.inference import ReadyModel, evaluating, ready
from swindow.model import Model
from swindow.ops.windows import Size
from swindow.preprocess import Preprocess
from swindow.shapes import Pixels

__all__ = ["Explanation", "Frame", "PointMaps", "PointStage", "Segmented", "StageMaps", "explain"]

InputSize = int | tuple[int, int] | str


def explain(
    model_or_path: Model | str | Path,
    image: Source,
    *,
    point: tuple[int, int] | None = None,
    target: int | str | None = None,
    stage: int = -1,
    region: bool = False,
    size: InputSize | None = None,
    out: str | Path | None = None,
    device: str = "auto",
) -> Explanation:
    """Window attention, a point's receptive field and Grad-CAM for one image, as arrays and, with `out`, as pictures.

    A classifier is asked about its image, a segmenter (UPerNet or U-Net) about one pixel: Grad-CAM is then that of the
    class's logit at the point. A segmenter whose backbone has no window attention (ResNet, ViT, Swin-MLP) is explained
    without attention, as `Explanation.note` says; such a classifier is refused. Where the model was trained on windows,
    a picture of more than four windows' area is explained in the one window around the point;
    `Explanation.segmented` says where that lies.

    Args:
        model_or_path: a model, left exactly as it is, or what `swindow.load` takes.
        image: what `swindow.images.read_image` takes.
        point: the pixel (x, y) of the photo to follow; by default where Grad-CAM is strongest. Of a segmenter, by
            default the most confident pixel of the largest connected region of the target.
        target: the class that Grad-CAM explains, by name or number; by default the predicted one. Of a segmenter, by
            default the one predicted at the point, and without a point the one that covers most, background aside.
        stage: the stage whose map Grad-CAM weighs, from 0; negative counts from the end. A U-Net's decoder has none.
        region: Grad-CAM for all pixels that a segmenter predicts as the target, by the sum of their logits
            (Vinogradova et al. 2020), in place of the point's alone.
        size: another input size than the model's: a side, (height, width), both also as text (``"480x640"``), or
            ``"native"`` for the photo's own pixels. Where the model keeps pictures' own size, that of the window.
        out: a folder for `Explanation.save`.
        device: ``auto`` is where a model given already is, and for a path the best there is.

    Raises:
        ConfigError: a point that the model does not see, a stage or class that it does not have, a region that is
            empty or not a segmenter's, a classifier without window attention, or a model that does not say how pixels
            are prepared.
        DataError: the image cannot be read, or `out` cannot be written.
        CheckpointError: there is no model at the path.
        MissingExtra: a pixel is to be chosen, and scipy is not installed.
    """
    if isinstance(image, (str, Path)) and volume_suffix(image):
        raise DataError(f"{name_of(image)}: is a volume or an array, and one picture is explained; save a slice as PNG")
    one = ready(model_or_path, device=device, precision="fp32")
    photo = read_image(image, channels=one.model.config.in_channels, intensity=one.preprocess.intensity)
    size_of_photo = (photo.shape[1], photo.shape[2])
    one = dataclasses.replace(one, preprocess=_sized(one.preprocess, size, size_of_photo))
    body = one.model.backbone if one.model.task == "segment" else windowed(one.model)
    stages = len(body.config.depths)
    asked = Question(point, _target(target, one.classes), _stage(stage, stages), region)
    _check_point(point, frame_of(one.preprocess, size_of_photo))
    if region and one.model.task != "segment":
        raise ConfigError(
            f"region asks about pixels, and {one.model.config.name} classifies whole images; leave it out"
        )
    explain_one = explain_pixel if one.model.task == "segment" else _explain_class
    with torch.inference_mode(False):
        explanation = explain_one(one, photo, name_of(image), asked)
    if out is not None:
        explanation.save(out)
    return explanation


def _explain_class(one: ReadyModel, photo: Pixels, name: str, asked: Question) -> Explanation:
    """For a classifier: the class of the whole image."""
    frame, strides = frame_of(one.preprocess, (photo.shape[1], photo.shape[2])), windowed(one.model).config.strides
    with evaluating(one.model):
        images = one.preprocess(photo)[None].to(next(one.model.parameters()))
        cam = grad_cam(one.model, images, asked.target, asked.stage)
        x, y = asked.point or _peak(array(cam.heat), frame, strides[asked.stage])
        tokens = [frame.token(x, y, stride) for stride in strides]
        traces = trace(windowed(one.model), images, tokens)
    shares = cam.logits.float().softmax(0)
    return Explanation(
        name=name,
        photo=photo.permute(1, 2, 0).numpy(),
        frame=frame,
        prediction=best(shares, one.classes, 5),
        target=one.classes[cam.target],
        probability=float(shares[cam.target]),
        gradcam=unit(frame.lay(array(cam.heat), strides[asked.stage])),
        gradcam_stage=asked.stage,
        rollout=pooled_rollout(traces),
        stages=tuple(map(stage_maps, traces, strides)),
        point=PointMaps(x=x, y=y, chosen=asked.point is not None, stages=follow(traces, tokens)),
    )


def _sized(preprocess: Preprocess, size: InputSize | None, photo: Size) -> Preprocess:
    """The model's preprocessing with the input size asked for; native means stretched to its own size: as it is."""
    if size is None:
        return preprocess
    if size == "native":
        return dataclasses.replace(preprocess, size=photo, fit="squash")
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", size) if isinstance(size, str) else None
    match [int(side) for side in found.groups() if side] if found else size:
        case int(side) | [int(side)]:
            return dataclasses.replace(preprocess, size=(side, side))
        case int(height), int(width):
            return dataclasses.replace(preprocess, size=(height, width))
    raise ConfigError(f"size {size!r} is not a side in pixels, a height and width such as 480x640, or 'native'")


def _target(target: int | str | None, classes: tuple[str, ...]) -> int | None:
    """The number of the class asked for by name or number; text that names no class may be a number."""
    if isinstance(target, str):
        if target in classes:
            return classes.index(target)
        if not target.isdecimal():
            raise UnknownName("class", target, classes)
        target = int(target)
    if target is not None and not 0 <= target < len(classes):
        raise ConfigError(f"target {target} is not a class of this model; give a name or 0 to {len(classes) - 1}")
    return target


def _stage(stage: int, count: int) -> int:
    if not -count <= stage < count:
        raise ConfigError(f"stage {stage} is not one of {count}; give 0 to {count - 1}, or -1 for the last")
    return stage % count


def _check_point(point: tuple[int, int] | None, frame: Frame) -> None:
    if point is None:
        return
    (x, y), seen = point, frame.seen()
    if not (0 <= x < frame.photo[1] and 0 <= y < frame.photo[0] and seen[y, x]):
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        raise ConfigError(
            f"point ({x}, {y}) is not in what the model sees of this photo; "
            f"give x from {columns[0]} to {columns[-1]} and y from {rows[0]} to {rows[-1]}"
            + ("" if seen.all() else ", or size='native' to see all")
        )


def _peak(heat: ndarray, frame: Frame, stride: int) -> tuple[int, int]:
    """The pixel in the middle of the brightest token, or of the map when nothing is bright."""
    place = int(heat.argmax()) if heat.max() > 0 else heat.shape[0] // 2 * heat.shape[1] + heat.shape[1] // 2
    row, column = divmod(place, heat.shape[1])
    return frame.pixel((row, column), stride)
