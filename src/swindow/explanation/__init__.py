"""Why a Swin sees in a photo what it sees: attention, receptive fields and Grad-CAM, at any image size.

`explain` walks through the model with its own public parts; nothing is hooked and nothing changed.

* `windows`: window attention stitched back to the token grid; chains of windows followed backwards
* `tracing`: one image through the model's parts
* `frame`: maps laid back on the photo's pixels
* `results`: the arrays; `pictures` and `page`: what `Explanation.save` draws
"""

import dataclasses
import re
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from swindow.backbones import WindowedBackbone
from swindow.errors import ConfigError, UnknownName
from swindow.explanation import windows
from swindow.explanation.frame import Frame
from swindow.explanation.results import Explanation, PointMaps, PointStage, StageMaps
from swindow.explanation.tracing import BlockTrace, ClassMap, grad_cam, trace
from swindow.explanation.windows import Step
from swindow.images import Source, name_of, read_image
from swindow.inference import evaluating, ready
from swindow.model import Model
from swindow.ops.windows import Size
from swindow.preprocess import Preprocess

__all__ = ["Explanation", "Frame", "PointMaps", "PointStage", "StageMaps", "explain"]

InputSize = int | tuple[int, int] | str


def explain(
    model_or_path: Model | str | Path,
    image: Source,
    *,
    point: tuple[int, int] | None = None,
    target: int | str | None = None,
    stage: int = -1,
    size: InputSize | None = None,
    out: str | Path | None = None,
    device: str = "auto",
) -> Explanation:
    """Window attention, a point's receptive field and Grad-CAM for one image, as arrays and, with `out`, as pictures.

    Args:
        model_or_path: a model, left exactly as it is, or what `swindow.load` takes.
        image: what `swindow.images.read_image` takes.
        point: the pixel (x, y) of the photo to follow; by default where Grad-CAM is strongest.
        target: the class that Grad-CAM explains, by name or number; by default the predicted one.
        stage: the stage whose map Grad-CAM weighs, from 0; negative counts from the end.
        size: another input size than the model's: a side, (height, width), both also as text (``"480x640"``), or
            ``"native"`` for the photo's own pixels.
        out: a folder for `Explanation.save`.
        device: ``auto`` is where a model given already is, and for a path the best there is.

    Raises:
        ConfigError: a point that the model does not see, a stage or class that it does not have, or a model that does
            not say how pixels are prepared.
        DataError: the image cannot be read, or `out` cannot be written.
        CheckpointError: there is no model at the path.
    """
    one = ready(model_or_path, device=device, precision="fp32")
    photo = read_image(image, channels=one.model.config.in_channels)
    preprocess = _sized(one.preprocess, size, (photo.shape[1], photo.shape[2]))
    frame = _frame(preprocess, (photo.shape[1], photo.shape[2]))
    backbone, strides = _windowed(one.model), one.model.backbone.config.strides
    wanted, stage = _target(target, one.classes), _stage(stage, len(strides))
    _check_point(point, frame)
    with torch.inference_mode(False), evaluating(one.model):
        images = preprocess(photo)[None].to(next(one.model.parameters()))
        cam = grad_cam(one.model, images, wanted, stage)
        x, y = _peak(_array(cam.heat), frame, strides[stage]) if point is None else point
        tokens = [frame.token(x, y, stride) for stride in strides]
        traces = trace(backbone, images, tokens)
        explanation = Explanation(
            name=name_of(image),
            photo=photo.permute(1, 2, 0).numpy(),
            frame=frame,
            prediction=_best(cam, one.classes, 5),
            target=one.classes[cam.target],
            probability=float(cam.logits.softmax(0)[cam.target]),
            gradcam=_unit(frame.lay(_array(cam.heat), strides[stage])),
            gradcam_stage=stage,
            rollout=_pooled_rollout(traces),
            stages=tuple(map(_stage_maps, traces, strides)),
            point=PointMaps(x=x, y=y, chosen=point is not None, stages=_follow(traces, tokens)),
        )
    if out is not None:
        explanation.save(out)
    return explanation


def _windowed(model: Model) -> WindowedBackbone:
    """The model's backbone, whose window attention there is to explain.

    Raises:
        ConfigError: it has none.
    """
    body = model.backbone
    if not isinstance(body, WindowedBackbone) or not all(hasattr(block, "attn") for block in body.blocks()):
        raise ConfigError(f"{model.config.name} has no window attention to explain; explain takes Swin and Swin V2")
    return body


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


def _frame(preprocess: Preprocess, photo: Size) -> Frame:
    top, left, height, width = preprocess.region(*photo)
    return Frame(photo=photo, region=(float(top), float(left), float(height), float(width)), input=preprocess.size)


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
            f"give x from {columns[0]} to {columns[-1]} and y from {rows[0]} to {rows[-1]}, or size='native' to see all"
        )


def _best(cam: ClassMap, classes: tuple[str, ...], most: int) -> tuple[tuple[str, float], ...]:
    values, indices = cam.logits.float().softmax(0).topk(min(most, len(classes)))
    return tuple((classes[index], value) for value, index in zip(values.tolist(), indices.tolist(), strict=True))


def _unit(heat: ndarray) -> ndarray:
    """Scaled so that the highest is 1; a map of zeros stays one."""
    return heat / heat.max() if heat.max() > 0 else heat


def _peak(heat: ndarray, frame: Frame, stride: int) -> tuple[int, int]:
    """The pixel in the middle of the brightest token, or of the map when nothing is bright."""
    place = int(heat.argmax()) if heat.max() > 0 else heat.shape[0] // 2 * heat.shape[1] + heat.shape[1] // 2
    row, column = divmod(place, heat.shape[1])
    return frame.pixel((row, column), stride)


def _stage_maps(blocks: list[BlockTrace], stride: int) -> StageMaps:
    return StageMaps(
        stride=stride,
        window=blocks[0].step.layout.window,
        shifts=tuple(block.step.layout.shift for block in blocks),
        received=tuple(_array(block.received) for block in blocks),
        padding=tuple(_array(block.padding) for block in blocks),
    )


def _pooled_rollout(traces: list[list[BlockTrace]]) -> ndarray:
    """Roll-out of what a classifier reads: the mean of the last stage's tokens."""
    layout, weights = traces[-1][-1].step
    uniform = weights.new_full(layout.grid, 1 / (layout.grid[0] * layout.grid[1]))
    return _array(windows.rollout(uniform, _steps(traces)))


def _follow(traces: list[list[BlockTrace]], tokens: list[Size]) -> tuple[PointStage, ...]:
    return tuple(_point_stage(traces[: stage + 1], token) for stage, token in enumerate(tokens))


def _point_stage(traces: list[list[BlockTrace]], token: Size) -> PointStage:
    """A token of the last of these stages, followed back through all of them."""
    layout, weights = traces[-1][-1].step
    vector = windows.one_hot(layout.grid, token, weights)
    layouts = [[block.step.layout for block in stage] for stage in traces]
    return PointStage(
        token=token,
        attention=tuple(_array(block.given) for block in traces[-1]),
        padding=tuple(_array(block.given_padding) for block in traces[-1]),
        views=tuple(block.view.numpy() for block in traces[-1]),
        rollout=_array(windows.rollout(vector, _steps(traces))),
        reach=windows.receptive_field(vector.cpu() > 0, layouts).numpy(),
    )


def _steps(traces: list[list[BlockTrace]]) -> list[list[Step]]:
    return [[block.step for block in stage] for stage in traces]


def _array(x: Tensor) -> ndarray:
    return x.float().cpu().numpy()
