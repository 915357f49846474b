"""Pictures of what a detector finds and why one of it: the boxes, a DETR's attention, the evidence for the object."""

from collections.abc import Callable

import numpy as np
import torch

from swindow.explanation.canvas import EVIDENCE, LARGE, Canvas, Panel, Picture
from swindow.explanation.marks import object_box, percent, resized, shortened
from swindow.explanation.results import Detected, Explanation
from swindow.objects import Detections
from swindow.overlays import draw_detections

Board = Callable[[int], Canvas]

DRAWN = 0.5
"""The least score of what is drawn beside the object that is explained."""
AROUND, SMALL = 2.5, 0.6
"""A part of the photo this many times as large as the box is shown too, if it is less than this share of it."""
TAGGED = 480  # longest side of the photo with boxes: as it is shown, so that letters keep their size
BOX = ("box", "the object that is explained")


def found(e: Explanation, answer: Detected, board: Board) -> list[Picture]:
    """All pictures but those of window attention."""
    attention = [_attention(e, answer, board)] if answer.attention else []
    return [_prediction(e, answer, board), *attention, _gradcam(e, answer, board), _evidence(e, answer, board)]


def _prediction(e: Explanation, answer: Detected, board: Board) -> Picture:
    large, shown = board(TAGGED), _shown(answer)
    pixels = torch.from_numpy(e.photo).permute(2, 0, 1)
    painted = draw_detections(pixels, shown, answer.classes, answer.colours, side=TAGGED)
    more = len(answer.found) - len(shown)
    rest = f"; {more:,} more with scores below {DRAWN} are not drawn" if more else ""
    box = object_box(answer, large)
    return Picture(
        name="prediction",
        title=f"What is found: {_called(e, answer)}",
        subtitle=f"{_counted(len(shown))} drawn, masks where the model makes them{rest}",
        meaning="The objects that the model finds. All that follows is about the one whose box is bright.",
        panels=(
            Panel(pixels=large.plain(), caption="photo", box=box),
            Panel(pixels=np.asarray(painted.convert("RGB"), np.float32) / 255, caption="objects found", box=box),
        ),
        columns=2,
        bar=(),
        key=(BOX,),
    )


def _attention(e: Explanation, answer: Detected, board: Board) -> Picture:
    """Of a DETR: where the object's query looks in each layer of the decoder."""
    last, canvas = len(answer.attention), board(LARGE)
    shares = [heat * heat.size for heat in answer.attention]
    box = object_box(answer, canvas)
    panels = [
        Panel(
            pixels=canvas.overlay(canvas.frame.lay(_excess(share), answer.stride)),
            caption=f"layer {number} · up to {share.max():.1f} ×" + (" · the answer's" if number == last else ""),
            box=box,
        )
        for number, share in enumerate(shares, start=1)
    ]
    return Picture(
        name="attention",
        title=f"What the query of {_called(e, answer)} attends to",
        subtitle="mean over heads; bare photo: an even share or less; brightest: each panel's maximum, if 2 × or more",
        meaning="The weights that the object's query gives to each cell of the picture's features, layer by layer of "
        "the decoder: the first looks for something, the last settles where it ends.",
        panels=tuple(panels),
        columns=min(len(panels), 3) if len(panels) != 4 else 2,
        bar=((0.0, "≤ 1 ×"), (1.0, "maximum")),
        key=(BOX,),
    )


def _gradcam(e: Explanation, answer: Detected, board: Board) -> Picture:
    large, stage = board(LARGE), f"the map of stage {e.gradcam_stage + 1}"
    heats = [
        ("Grad-CAM", resized(e.gradcam, large)),
        ("place by place", resized(answer.hirescam[e.gradcam_stage], large)),
    ]
    dark = " and ".join(f"“{name}”" for name, heat in heats if not heat.any())
    box = object_box(answer, large)
    return Picture(
        name="gradcam",
        title=f"Why {_called(e, answer)}: Grad-CAM",
        subtitle=f"score {percent(e.probability)}, evidence in {stage}"
        + (f"; nothing speaks for the object in {dark}" if dark else ""),
        meaning=f"Where {stage} raises the logit of “{shortened(e.target)}” for this box. Grad-CAM weighs each channel "
        "by its mean gradient, so that other objects of the class are bright too. Place by place (HiResCAM), every "
        "token counts by its own gradients: what was used for this box, where it was.",
        panels=(
            Panel(pixels=large.plain(), caption="photo", box=box),
            *(Panel(pixels=large.overlay(heat), caption=name, box=box) for name, heat in heats),
            *_enlarged(answer, board, [e.gradcam, answer.hirescam[e.gradcam_stage]]),
        ),
        columns=3,
        bar=EVIDENCE,
        key=(BOX,),
    )


def _enlarged(answer: Detected, board: Board, heats: list[np.ndarray]) -> list[Panel]:
    """The surroundings of a small box: the photo and maps on it."""
    fine = board(2 * LARGE)
    box, (height, width) = object_box(answer, fine), fine.frame.photo
    zoom = AROUND * max(box[2] / height, box[3] / width)
    if zoom > SMALL:
        return []
    near, (left, top) = fine.around(box, zoom)
    rows, columns = slice(top, top + near.photo.shape[0]), slice(left, left + near.photo.shape[1])
    pixels = [near.plain(), *(near.overlay(resized(heat, fine)[rows, columns]) for heat in heats)]
    return [Panel(pixels=one, caption="around the box", box=box, origin=(left, top)) for one in pixels]


def _evidence(e: Explanation, answer: Detected, board: Board) -> Picture:
    large, box = board(LARGE), object_box(answer, board(LARGE))
    return Picture(
        name="evidence",
        title=f"Why {_called(e, answer)}: every stage, place by place",
        subtitle="each panel has its own maximum",
        meaning=f"What raises the logit of “{shortened(e.target)}” for this box in the map of each stage, by all ways "
        "that lead on from there: fine maps show edges and textures, coarse ones their surroundings.",
        panels=tuple(
            Panel(
                pixels=large.overlay(resized(heat, large)),
                caption=f"stage {stage}" + ("" if heat.any() else " · nothing"),
                box=box,
            )
            for stage, heat in enumerate(answer.hirescam, start=1)
        ),
        columns=len(answer.hirescam) if len(answer.hirescam) < 4 else 2,
        bar=EVIDENCE,
        key=(BOX,),
    )


def _shown(answer: Detected) -> Detections:
    """What is drawn: what is sure, and the object that is explained."""
    kept = answer.found.scores >= DRAWN
    kept[answer.chosen] = True
    return answer.found[kept]


def _called(e: Explanation, answer: Detected) -> str:
    return f"“{shortened(e.target)}” (object {answer.chosen} of {len(answer.found)})"


def _counted(objects: int) -> str:
    return "1 object" if objects == 1 else f"{objects:,} objects"


def _excess(shares: np.ndarray) -> np.ndarray:
    """An even share or less as 0, the maximum, if it is 2 or more, as 1."""
    return ((shares - 1) / (max(2.0, float(shares.max())) - 1)).clip(0, 1)
