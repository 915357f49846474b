"""Every picture of an explanation, each one function from the arrays to a figure."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy import ndarray

from swindow.explanation.canvas import Canvas, Panel, Theme, canvas, figure, part
from swindow.explanation.results import Explanation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGE, SMALL = 900, 480
POINT = ("o", "the chosen point")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture's file name, its heading, a sentence on what it shows, and how to draw it."""

    name: str
    heading: str
    meaning: str
    draw: Callable[[Theme], "Figure"]


def pictures(e: Explanation) -> list[Picture]:
    """All pictures of an explanation, the most telling first."""
    last = len(e.stages)
    return [
        Picture(
            name="gradcam",
            heading=f"Grad-CAM for “{_short(e.target)}”",
            meaning=f"Where the model found evidence for “{_short(e.target)}”: the map of stage {e.gradcam_stage + 1}, "
            "each channel weighed by how much it raises that class.",
            draw=lambda theme: _gradcam(e, theme),
        ),
        Picture(
            name="rollout",
            heading="Attention roll-out",
            meaning="From which patches the final features are made, by attention alone: the weights of all blocks, "
            "multiplied backwards through windows, residual connections and merging. It knows no class.",
            draw=lambda theme: _rollout(e, theme),
        ),
        Picture(
            name="point",
            heading="What the chosen point attends to",
            meaning="The weights that the point's token gives to each token of its window, mean over heads, in the last "
            "regular and the last shifted block of each stage. Each panel is enlarged around the window.",
            draw=lambda theme: _point(e, theme),
        ),
        Picture(
            name="point-heads",
            heading=f"The chosen point, head by head (stage {last})",
            meaning=f"The same for every head of the last block of stage {last}: heads look for different things.",
            draw=lambda theme: _point_heads(e, theme),
        ),
        Picture(
            name="receptive-field",
            heading="How the point's receptive field grows",
            meaning="Colour: from which patches the point's token is made by the end of each stage (roll-out). Outline: "
            "all that can reach it at all, whatever the weights.",
            draw=lambda theme: _receptive_field(e, theme),
        ),
        Picture(
            name="stages",
            heading="Attention received, stage by stage",
            meaning="How much each token is looked at by the tokens that can see it, mean over heads and blocks; above "
            "in regular windows, below in shifted ones. 1 is a fair share.",
            draw=lambda theme: _stages(e, theme),
        ),
        *(
            Picture(
                name=f"heads-stage{stage + 1}",
                heading=f"Attention received, head by head (stage {stage + 1})",
                meaning=f"What each head of the last block of stage {stage + 1} looks at. 1 is a fair share.",
                draw=lambda theme, stage=stage: _heads(e, stage, theme),
            )
            for stage in range(last)
        ),
    ]


def _gradcam(e: Explanation, theme: Theme) -> "Figure":
    board = canvas(e.photo, e.frame, LARGE)
    heat = _resized(e.gradcam, board)
    return figure(
        [Panel(pixels=board.dimmed(), caption="photo"), Panel(pixels=board.overlay(heat), caption="evidence")],
        columns=2,
        title=f"Grad-CAM for “{_short(e.target)}”",
        subtitle=f"probability {_percent(e.probability)}, evidence in stage {e.gradcam_stage + 1}"
        + ("" if heat.any() else " — nothing in this map speaks for the class"),
        bar=[(0, "none"), (0.5, ""), (1, "strongest")],
        key=_unseen_key(e),
        theme=theme,
    )


def _rollout(e: Explanation, theme: Theme) -> "Figure":
    board = canvas(e.photo, e.frame, LARGE)
    heat, top = _against(e.rollout, e.rollout.mean())
    laid = board.frame.lay(heat, e.stages[0].stride)
    return figure(
        [Panel(pixels=board.dimmed(), caption="photo"), Panel(pixels=board.overlay(laid), caption="roll-out")],
        columns=2,
        title="Attention roll-out",
        subtitle="share of each patch in the mean of the final tokens; 1 × is an even share",
        bar=_shares(top),
        key=_unseen_key(e),
        theme=theme,
    )


def _stages(e: Explanation, theme: Theme) -> "Figure":
    board = canvas(e.photo, e.frame, SMALL)
    kinds = ("regular windows", "shifted windows")
    means = [[_mean_received(e, stage, kind) for stage in range(len(e.stages))] for kind in (0, 1)]
    means = [row for row in means if any(heat is not None for heat in row)]
    top = _top([heat for row in means for heat in row if heat is not None])
    panels = [
        None
        if heat is None
        else Panel(
            pixels=board.overlay(board.frame.lay((heat / top).clip(0, 1), e.stages[stage].stride)),
            caption=f"stage {stage + 1} · {kind}",
        )
        for kind, row in zip(kinds, means, strict=False)
        for stage, heat in enumerate(row)
    ]
    return figure(
        panels,
        columns=len(e.stages),
        title="Attention received, stage by stage",
        subtitle="mean over heads and blocks; 1 × is a fair share"
        + _padding_note([share for stage in e.stages for share in stage.padding]),
        bar=_shares(top),
        key=_unseen_key(e),
        theme=theme,
    )


def _heads(e: Explanation, stage: int, theme: Theme) -> "Figure":
    board, maps = canvas(e.photo, e.frame, SMALL), e.stages[stage]
    received, shifted = maps.received[-1], any(maps.shifts[-1])
    top = _top(list(received))
    return figure(
        [
            Panel(
                pixels=board.overlay(board.frame.lay((heat / top).clip(0, 1), maps.stride)), caption=f"head {head + 1}"
            )
            for head, heat in enumerate(received)
        ],
        columns=_columns(len(received)),
        title=f"Attention received, head by head: stage {stage + 1}, block {len(maps.received)}",
        subtitle=f"{'shifted' if shifted else 'regular'} windows of {maps.window[0]} × {maps.window[1]} tokens; "
        "1 × is a fair share" + _padding_note([maps.padding[-1]]),
        bar=_shares(top),
        key=_unseen_key(e),
        theme=theme,
    )


def _point(e: Explanation, theme: Theme) -> "Figure":
    board = canvas(e.photo, e.frame, 2 * LARGE)
    shown = [_last_blocks(e, stage) for stage in range(len(e.stages))]
    kinds = [kind for kind in (0, 1) if any(pair[kind] is not None for pair in shown)]
    panels = [
        None if (block := shown[stage][kind]) is None else _window_panel(e, board, stage, block)
        for kind in kinds
        for stage in range(len(e.stages))
    ]
    return figure(
        panels,
        columns=len(e.stages),
        title="What the chosen point attends to",
        subtitle="mean over heads; in each panel the brightest token is the one that most attention goes to",
        bar=[(0, "0"), (1, "maximum")],
        key=[POINT, ("-", "what it sees: its window")],
        theme=theme,
    )


def _point_heads(e: Explanation, theme: Theme) -> "Figure":
    board, maps, followed = canvas(e.photo, e.frame, SMALL), e.stages[-1], e.point.stages[-1]
    attention = followed.attention[-1]
    box = board.frame.box(followed.views[-1], maps.stride)
    return figure(
        [
            Panel(
                pixels=board.overlay(board.frame.lay(heat / heat.max() if heat.any() else heat, maps.stride)),
                caption=f"head {head + 1} · up to {_percent(float(heat.max()))}",
                boxes=((box, "-"),),
                point=_place(e, board),
            )
            for head, heat in enumerate(attention)
        ],
        columns=_columns(len(attention)),
        title=f"The chosen point, head by head: stage {len(e.stages)}, block {len(maps.received)}",
        subtitle="what each head of the point's token attends to; every panel has its own maximum"
        + _padding_note([followed.padding[-1]]),
        bar=[(0, "0"), (1, "maximum")],
        key=[POINT, ("-", "what it sees: its window"), *_unseen_key(e)],
        theme=theme,
    )


def _receptive_field(e: Explanation, theme: Theme) -> "Figure":
    board, patch = canvas(e.photo, e.frame, 2 * SMALL), e.stages[0].stride
    panels = [
        Panel(
            pixels=board.overlay(board.frame.lay(_against(followed.rollout)[0], patch)),
            caption=f"after stage {stage + 1}",
            boxes=((board.frame.box(followed.reach, patch), "-"),),
            point=_place(e, board),
        )
        for stage, followed in enumerate(e.point.stages)
    ]
    return figure(
        panels,
        columns=len(panels),
        title="How the point's receptive field grows",
        subtitle="roll-out of the point's token, stage by stage; every panel has its own maximum",
        bar=[(0, "0"), (1, "maximum")],
        key=[POINT, ("-", "all that can reach it"), *_unseen_key(e)],
        theme=theme,
    )


def _window_panel(e: Explanation, board: Canvas, stage: int, block: int) -> Panel:
    """The photo around the point's window, each token's cell in one colour."""
    maps, followed = e.stages[stage], e.point.stages[stage]
    heat = followed.attention[block].mean(0)
    box = board.frame.box(followed.views[block], maps.stride)
    pixels = board.overlay(board.frame.cells(heat / heat.max() if heat.any() else heat, maps.stride))
    share = min(1.0, 1.7 * max(box[0 + 2] / pixels.shape[0], box[1 + 2] / pixels.shape[1]))
    size = (max(1, int(pixels.shape[0] * share)), max(1, int(pixels.shape[1] * share)))
    zoomed, origin = part(pixels, box, size)
    kind = "shifted" if any(maps.shifts[block]) else "regular"
    return Panel(
        pixels=zoomed,
        caption=f"stage {stage + 1} · {kind} · up to {_percent(float(heat.max()))}",
        boxes=((box, "-"),),
        point=_place(e, board),
        origin=origin,
    )


def _mean_received(e: Explanation, stage: int, kind: int) -> ndarray | None:
    """Mean over heads and over the blocks whose windows are regular (0) or shifted (1), None if there are none."""
    maps = e.stages[stage]
    chosen = [heat for heat, shift in zip(maps.received, maps.shifts, strict=True) if any(shift) == bool(kind)]
    return np.mean([heat.mean(0) for heat in chosen], 0) if chosen else None


def _last_blocks(e: Explanation, stage: int) -> tuple[int | None, int | None]:
    """The last block with regular and the last with shifted windows."""
    shifts = e.stages[stage].shifts
    found = [[block for block, shift in enumerate(shifts) if any(shift) == bool(kind)] for kind in (0, 1)]
    regular, shifted = (blocks[-1] if blocks else None for blocks in found)
    return regular, shifted


def _place(e: Explanation, board: Canvas) -> tuple[float, float]:
    """The middle of the point's pixel on the canvas."""
    down, across = (new / old for new, old in zip(board.frame.photo, e.frame.photo, strict=True))
    return (e.point.x + 0.5) * across, (e.point.y + 0.5) * down


def _resized(heat: ndarray, board: Canvas) -> ndarray:
    """A map on the photo's pixels, at the canvas's size."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(board.frame.photo, heat.shape, strict=True)
    )
    return heat[rows][:, columns]


def _against(heat: ndarray, unit: float | None = None) -> tuple[ndarray, float]:
    """A map scaled to 0..1 by its bright end, and that end in units of `unit`."""
    top = float(np.quantile(heat[heat > 0], 0.995))
    return (heat / top).clip(0, 1), top / (unit or top)


def _top(maps: Sequence[ndarray]) -> float:
    """The bright end of a common scale for maps around 1: few pixels lie above it."""
    return max(1.5, float(np.quantile(np.concatenate([heat.ravel() for heat in maps]), 0.995)))


def _shares(top: float) -> list[tuple[float, str]]:
    return [(0, "0"), (1 / top, "1 ×"), (1, f"≥ {top:.1f} ×")] if top > 1.15 else [(0, "0"), (1, f"{top:.1f} ×")]


def _columns(heads: int) -> int:
    return next((columns for columns in (6, 8, 5, 4) if heads % columns == 0), min(heads, 6))


def _padding_note(shares: Sequence[ndarray]) -> str:
    mean = float(np.mean([share.mean() for share in shares]))
    return f"; {_percent(mean)} of the attention went to padding and is left out" if mean > 0 else ""


def _unseen_key(e: Explanation) -> list[tuple[str, str]]:
    return [] if e.frame.seen().all() else [("unseen", "not seen by the model")]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %" if value >= 0.001 else "< 0.1 %"


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
