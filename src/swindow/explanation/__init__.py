"""Why a model sees in a photo, at a pixel or in a box of it, what it sees: attention, receptive fields and Grad-CAM.

`explain` walks through the model with its own public parts; nothing is hooked and nothing changed.

* `windows`: window attention stitched back to the token grid; chains of windows followed backwards
* `tracing`: one image through the model's parts
* `gathering`: from there to plain arrays; `pixels` and `objects`: the questions that segmenters and detectors are asked
* `frame`: maps laid back on the photo's pixels
* `results`: the arrays; `pictures`, `answers` (a segmenter's), `found` (a detector's) and `page`: what
  `Explanation.save` draws
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
from swindow.explanation.objects import explain_object
from swindow.explanation.pixels import Question, explain_pixel, frame_of
from swindow.explanation.results import Detected, Explanation, PointMaps, PointStage, Segmented, StageMaps
from swindow.explanation.tracing import grad_cam, trace, windowed
from swindow.images import Source, name_of, read_image
from swindow.inference import ReadyModel, evaluating, ready
from swindow.model import Model
from swindow.ops.windows import Size
from swindow.preprocess import Preprocess
from swindow.shapes import Pixels

__all__ = ["Detected", "Explanation", "Frame", "PointMaps", "PointStage", "Segmented", "StageMaps", "explain"]

InputSize = int | tuple[int, int] | str


def explain(
    model_or_path: Model | str | Path,
    image: Source,
    *,
    point: tuple[int, int] | None = None,
    target: int | str | None = None,
    object: int | None = None,
    stage: int | None = None,
    region: bool = False,
    size: InputSize | None = None,
    out: str | Path | None = None,
    device: str = "auto",
) -> Explanation:
    """Window attention, a point's receptive field and Grad-CAM for one image, as arrays and, with `out`, as pictures.

    A classifier is asked about its image, a segmenter (UPerNet or U-Net) about one pixel: Grad-CAM is then that of the
    class's logit at the point. Where the model was trained on windows, a picture of more than four windows' area is
    explained in the one window around the point; `Explanation.segmented` says where that lies. A detector is asked
    about one of the objects that it finds: Grad-CAM is that of the logit by which its box was scored, and of a DETR
    there is what the object's query attends to; `Explanation.detected` has what is found. A segmenter or detector whose
    backbone has no window attention (ResNet, ViT, Swin-MLP) is explained without that, as `Explanation.note` says; such
    a classifier is refused.

    Args:
        model_or_path: a model, left exactly as it is, or what `swindow.load` takes.
        image: what `swindow.images.read_image` takes.
        point: the pixel (x, y) of the photo to follow; by default where Grad-CAM is strongest. Of a segmenter, by
            default the most confident pixel of the largest connected region of the target. Of a detector, a pixel in
            the object that is meant: of boxes around it the smallest with a score of 0.5 or more, else the surest.
        target: the class that Grad-CAM explains, by name or number; by default the predicted one. Of a segmenter, by
            default the one predicted at the point, and without a point the one that covers most, background aside. Of a
            detector, the class of the object that is meant.
        object: of a detector, the rank of the object that is meant: 0, which is the default, is the surest of all, or
            with a target of all of that class.
        stage: the stage whose map Grad-CAM weighs, from 0; negative counts from the end. By default the last, of an
            R-CNN or a RetinaNet that whose map has most of the evidence. A U-Net's decoder has none.
        region: Grad-CAM for all pixels that a segmenter predicts as the target, by the sum of their logits
            (Vinogradova et al. 2020), in place of the point's alone.
        size: another input size than the model's: a side, (height, width), both also as text (``"480x640"``), or
            ``"native"`` for the photo's own pixels. Where the model keeps pictures' own size, that of the window.
        out: a folder for `Explanation.save`.
        device: ``auto`` is where a model given already is, and for a path the best there is.

    Raises:
        ConfigError: a point that the model does not see, a stage or class that it does not have, a region that is
            empty or not a segmenter's, an object that is not found or not a detector's, a classifier without window
            attention, or a model that does not say how pixels are prepared.
        DataError: the image cannot be read, a detector finds nothing in it, or `out` cannot be written.
        CheckpointError: there is no model at the path.
        MissingExtra: a pixel is to be chosen, and scipy is not installed.
    """
    if isinstance(image, (str, Path)) and volume_suffix(image):
        raise DataError(f"{name_of(image)}: is a volume or an array, and one picture is explained; save a slice as PNG")
    one = ready(model_or_path, device=device, precision="fp32")
    if one.model.task == "pretrain":
        raise ConfigError(
            f"{one.model.config.name} is pretrained: it gives no answer to explain; fine-tune from it with "
            "swindow train DATA --weights RUN"
        )
    photo = read_image(image, channels=one.model.config.in_channels, intensity=one.preprocess.intensity)
    size_of_photo = (photo.shape[1], photo.shape[2])
    one = dataclasses.replace(one, preprocess=_sized(one.preprocess, size, size_of_photo))
    body = windowed(one.model) if one.model.task == "classify" else one.model.backbone
    stages = body.out_stages[-1] + 1
    number = _stage(-1 if stage is None else stage, stages)
    asked = Question(point, _target(target, one.classes), number, region, object, stage is not None)
    _check_point(point, frame_of(one.preprocess, size_of_photo))
    _check_task(asked, one.model)
    explain_one = {"classify": _explain_class, "segment": explain_pixel, "detect": explain_object}[one.model.task]
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


def _check_task(asked: Question, model: Model) -> None:
    """Whether what is asked can be asked of this kind of model."""
    name, does = model.config.name, {"classify": "classifies whole images", "segment": "names pixels"}
    if asked.region and model.task != "segment":
        raise ConfigError(f"region asks about pixels, and {name} {does.get(model.task, 'finds objects')}; leave it out")
    if asked.object is None:
        return
    if model.task != "detect":
        raise ConfigError(f"object asks about one that is found, and {name} {does[model.task]}; leave it out")
    if asked.point is not None:
        raise ConfigError(f"point {asked.point} and object {asked.object} both say which object; give one of them")
    if asked.object < 0:
        raise ConfigError(f"object {asked.object} is no rank; the surest object is 0, the next 1")


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
