"""Pictures of what a segmenter answers and why: the predicted classes, and the evidence for one of them."""

from collections.abc import Callable

import numpy as np
import torch

from swindow.explanation.canvas import EVIDENCE, LARGE, Canvas, Panel, Picture
from swindow.explanation.marks import percent, place, place_in_picture, point_mark, resized, shortened, subject
from swindow.explanation.results import Explanation, Segmented
from swindow.overlays import background_of, overlay

NAMED = 12
"""Classes that a key has room for."""


def prediction(e: Explanation, answer: Segmented, board: Callable[[int], Canvas]) -> Picture:
    """The class of each pixel, over the photo."""
    large, pixels = board(LARGE), torch.from_numpy(e.photo).permute(2, 0, 1)
    painted = overlay(pixels, answer.mask, answer.colours, side=LARGE, background=background_of(answer.classes))
    shares = np.bincount(answer.mask.ravel(), minlength=len(answer.classes)) / answer.mask.size
    found = [index for index in np.argsort(-shares, kind="stable") if shares[index] > 0]
    here = shortened(answer.classes[int(answer.mask[e.point.y, e.point.x])])
    more = [("#ffffff", f"and {len(found) - NAMED} more")] if len(found) > NAMED else []
    return Picture(
        name="prediction",
        title=f"The predicted classes: “{here}” at {place_in_picture(e)}",
        subtitle=f"what a class covers of the {'window' if answer.windowed else 'picture'}, in the key below",
        meaning="What the model says of every pixel. " + _about(e, answer),
        panels=(
            Panel(pixels=large.plain(), caption="photo", point=place(e, large)),
            Panel(pixels=np.asarray(painted, np.float32) / 255, caption="predicted classes", point=place(e, large)),
        ),
        columns=2,
        bar=(),
        key=(
            ("point", f"the {subject(e)}"),
            *(
                (_hex(answer.colours[i]), f"{shortened(answer.classes[i], 24)} {percent(shares[i])}")
                for i in found[:NAMED]
            ),
            *more,
        ),
    )


def why(e: Explanation, answer: Segmented, board: Callable[[int], Canvas]) -> list[Picture]:
    """Grad-CAM of a pixel, or of all pixels of a class: of the chosen stage both ways, and of all stages."""
    large, target = board(LARGE), shortened(e.target)
    point, key = (None, ()) if answer.region else (place(e, large), (point_mark(e),))
    asked, stage = "at this pixel", f"the map of stage {e.gradcam_stage + 1}"
    title = f"Why “{target}” at {place_in_picture(e)}"
    if answer.region:
        count = int((answer.mask == answer.classes.index(e.target)).sum())
        asked, title = "in all pixels predicted so", f"Why “{target}” at its {count:,} pixels"
    local = [resized(heat, large) for heat in answer.hirescam]
    chosen = [("Grad-CAM", resized(e.gradcam, large)), ("place by place", local[e.gradcam_stage])]
    dark = " and ".join(f"“{name}”" for name, heat in chosen if not heat.any())
    return [
        Picture(
            name="gradcam",
            title=f"{title}: Grad-CAM",
            subtitle=f"probability {percent(e.probability)}{_here(e)}, evidence in {stage}"
            + (f"; nothing speaks for the class in {dark}" if dark else ""),
            meaning=f"Where {stage} raises “{target}” {asked}. Grad-CAM weighs each "
            "channel by its mean gradient, so that it is bright also where the same features are found and not used. "
            "Place by place (HiResCAM), every token counts by its own gradients: what was used, where it was.",
            panels=(
                Panel(pixels=large.plain(), caption="photo", point=point),
                *(Panel(pixels=large.overlay(heat), caption=name, point=point) for name, heat in chosen),
            ),
            columns=3,
            bar=EVIDENCE,
            key=key,
        ),
        Picture(
            name="evidence",
            title=f"{title}: every stage, place by place",
            subtitle="each panel has its own maximum",
            meaning=f"What raises “{target}” {asked} in the map of each stage, by all ways that lead on from there: "
            "fine maps show edges and textures, coarse ones their surroundings.",
            panels=tuple(
                Panel(
                    pixels=large.overlay(heat),
                    caption=f"stage {stage}" + ("" if heat.any() else " · nothing"),
                    point=point,
                )
                for stage, heat in enumerate(local, start=1)
            ),
            columns=len(local) if len(local) < 4 else 2,
            bar=EVIDENCE,
            key=key,
        ),
    ]


def _about(e: Explanation, answer: Segmented) -> str:
    """Which pixels the other pictures are about."""
    if answer.region and not e.stages:
        return f"All that follows is about those predicted as “{shortened(e.target)}”."
    return "All that follows is about the one that is marked" + (", but for Grad-CAM." if answer.region else ".")


def _here(e: Explanation) -> str:
    """Where the probability is that of the class, and what is predicted there if that is another one."""
    if e.segmented is None:
        return ""
    predicted = e.segmented.classes[int(e.segmented.mask[e.point.y, e.point.x])]
    other = "" if predicted == e.target else f", where “{shortened(predicted)}” is predicted"
    return f" at {place_in_picture(e)}{other}"


def _hex(colour: tuple[int, int, int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in colour)
