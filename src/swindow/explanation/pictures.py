"""Every picture of an explanation, each one function from the arrays to panels.

Attention has one unit everywhere: 1 × is an even share over what could have been attended to. Colour begins above it,
so that a photo left bare means attention without preference.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from numpy import ndarray
from PIL import Image

from swindow.explanation.canvas import Canvas, Panel, Picture, canvas
from swindow.explanation.results import Explanation, StageMaps

Board = Callable[[int], Canvas]

LARGE, SMALL = 960, 400
POINT, WINDOW = ("point", "the chosen point"), ("box", "the tokens that it sees")
UNSEEN = ("unseen", "not seen by the model")
KINDS = ("regular windows", "shifted windows")


def pictures(e: Explanation) -> list[Picture]:
    """All pictures of an explanation, the most telling first."""
    board = functools.cache(lambda longest: canvas(e.photo, e.frame, longest))
    return [
        _gradcam(e, board),
        _rollout(e, board),
        _point(e, board),
        _point_heads(e, board),
        _receptive_field(e, board),
        _stages(e, board),
        *(_heads(e, stage, board) for stage in range(len(e.stages))),
    ]


def _gradcam(e: Explanation, board: Board) -> Picture:
    large, target = board(LARGE), shortened(e.target)
    nothing = "" if e.gradcam.any() else "; nothing in this map speaks for the class"
    return Picture(
        name="gradcam",
        title=f"Grad-CAM for “{target}”",
        subtitle=f"probability {percent(e.probability)}, evidence in the map of stage {e.gradcam_stage + 1}{nothing}",
        meaning=f"Where the model found evidence for “{target}”: the map of stage {e.gradcam_stage + 1}, each of its "
        "channels weighed by how much it raises that class.",
        panels=(
            Panel(pixels=large.plain(), caption="photo"),
            Panel(pixels=large.overlay(_resized(e.gradcam, large)), caption="evidence"),
        ),
        columns=2,
        bar=((0.0, "none"), (0.5, ""), (1.0, "strongest")),
        key=_unseen(e),
    )


def _rollout(e: Explanation, board: Board) -> Picture:
    large, shares = board(LARGE), e.rollout * e.rollout.size
    top = _top([shares], least=1.25)  # a mean over all tokens is smooth
    return Picture(
        name="rollout",
        title="Attention roll-out",
        subtitle="each patch's share in the mean of the final tokens; 1 × is an even share",
        meaning="From which patches the final features are made, going by attention alone: the weights of all blocks, "
        "followed backwards through windows, residual connections and merging. It knows no class.",
        panels=(
            Panel(pixels=large.plain(), caption="photo"),
            Panel(pixels=_above(shares, top, large, e.stages[0]), caption="roll-out"),
        ),
        columns=2,
        bar=_ticks(top),
        key=_unseen(e),
    )


def _stages(e: Explanation, board: Board) -> Picture:
    means = [[_mean_received(maps, kind) for maps in e.stages] for kind in (0, 1)]
    means = [row for row in means if any(heat is not None for heat in row)]
    top = _top([heat for row in means for heat in row if heat is not None])
    return Picture(
        name="stages",
        title="Attention received, stage by stage",
        subtitle="mean over heads and blocks; 1 × is an even share"
        + _padding_note([share for maps in e.stages for share in maps.padding]),
        meaning="How much each token is looked at by those that can see it, mean over heads and blocks: in regular "
        "windows and, below, in shifted ones.",
        panels=tuple(
            None
            if heat is None
            else Panel(pixels=_above(heat, top, board(SMALL), maps), caption=f"stage {index + 1} · {kind}")
            for kind, row in zip(KINDS, means, strict=False)
            for index, (maps, heat) in enumerate(zip(e.stages, row, strict=True))
        ),
        columns=len(e.stages),
        bar=_ticks(top),
        key=_unseen(e),
    )


def _heads(e: Explanation, stage: int, board: Board) -> Picture:
    maps = e.stages[stage]
    received, kind = maps.received[-1], KINDS[any(maps.shifts[-1])]
    top = _top(list(received))
    return Picture(
        name=f"heads-stage{stage + 1}",
        title=f"Attention received, head by head: stage {stage + 1}, block {len(maps.received)}",
        subtitle=f"{kind} of {maps.window[0]} × {maps.window[1]} tokens; 1 × is an even share"
        + _padding_note([maps.padding[-1]]),
        meaning=f"What each head of the last block of stage {stage + 1} looks at.",
        panels=tuple(
            Panel(pixels=_above(heat, top, board(SMALL), maps), caption=f"head {head + 1}")
            for head, heat in enumerate(received)
        ),
        columns=_columns(len(received)),
        bar=_ticks(top),
        key=_unseen(e),
    )


def _point(e: Explanation, board: Board) -> Picture:
    shown = [_last_blocks(maps) for maps in e.stages]
    kinds = [kind for kind in (0, 1) if any(pair[kind] is not None for pair in shown)]
    return Picture(
        name="point",
        title="What the chosen point attends to",
        subtitle="mean over heads; bare photo: an even share or less; brightest: each panel's maximum, if 2 × or more",
        meaning="The weights that the point's token gives to each token of its window, in the last regular and the "
        "last shifted block of each stage. Every panel is enlarged around the window; a coloured square is a token.",
        panels=tuple(
            None if (block := shown[stage][kind]) is None else _window_panel(e, board(2 * LARGE), stage, block)
            for kind in kinds
            for stage in range(len(e.stages))
        ),
        columns=len(e.stages),
        bar=((0.0, "≤ 1 ×"), (1.0, "maximum")),
        key=(POINT, WINDOW),
    )


def _point_heads(e: Explanation, board: Board) -> Picture:
    small, maps, followed = board(SMALL), e.stages[-1], e.point.stages[-1]
    view = followed.views[-1]
    shares = [heat * view.sum() for heat in followed.attention[-1]]
    return Picture(
        name="point-heads",
        title=f"The chosen point, head by head: stage {len(e.stages)}, block {len(maps.received)}",
        subtitle="what each head of the point's token attends to; brightest: each panel's maximum, if 2 × or more"
        + _padding_note([followed.padding[-1]]),
        meaning=f"The same for every head of the last block of stage {len(e.stages)}: heads look for different things.",
        panels=tuple(
            Panel(
                pixels=_above(share, max(2.0, float(share.max())), small, maps),
                caption=f"head {head + 1} · up to {share.max():.1f} ×",
                box=small.frame.box(view, maps.stride),
                point=_place(e, small),
            )
            for head, share in enumerate(shares)
        ),
        columns=_columns(len(shares)),
        bar=((0.0, "≤ 1 ×"), (1.0, "maximum")),
        key=(POINT, WINDOW, *_unseen(e)),
    )


def _receptive_field(e: Explanation, board: Board) -> Picture:
    large, patch = board(LARGE), e.stages[0].stride
    return Picture(
        name="receptive-field",
        title="How the point's receptive field grows",
        subtitle="roll-out of the point's token by the end of each stage; every panel has its own maximum",
        meaning="Colour: from which patches the point's token is made by the end of each stage, going by attention. "
        "Outline: all that can reach it at all, whatever the weights.",
        panels=tuple(
            Panel(
                pixels=large.overlay(large.frame.lay(_bright(followed.rollout), patch)),
                caption=f"after stage {stage + 1} · {100 * followed.reach.mean():.0f} % of the input can reach it",
                box=large.frame.box(followed.reach, patch),
                point=_place(e, large),
            )
            for stage, followed in enumerate(e.point.stages)
        ),
        columns=len(e.stages) if len(e.stages) < 4 else 2,
        bar=((0.0, "0"), (1.0, "maximum")),
        key=(POINT, ("box", "all that can reach it"), *_unseen(e)),
    )


def _window_panel(e: Explanation, large: Canvas, stage: int, block: int) -> Panel:
    """The photo around the point's window, each token's cell in one colour."""
    maps, followed = e.stages[stage], e.point.stages[stage]
    view = followed.views[block]
    share = followed.attention[block].mean(0) * view.sum()
    box = large.frame.box(view, maps.stride)
    zoom = min(1.0, 1.6 * max(box[2] / large.frame.photo[0], box[3] / large.frame.photo[1]))
    near, origin = large.around(box, zoom)
    kind = ("regular", "shifted")[any(maps.shifts[block])]
    return Panel(
        pixels=near.overlay(near.frame.cells(_excess(share, max(2.0, float(share.max()))), maps.stride)),
        caption=f"stage {stage + 1} · {kind} · up to {share.max():.1f} ×",
        box=box,
        point=_place(e, large),
        origin=origin,
    )


def _above(shares: ndarray, top: float, on: Canvas, maps: StageMaps) -> ndarray:
    """Shares above an even one, laid over the photo."""
    stride = maps.stride
    return on.overlay(on.frame.lay(_excess(shares, top), stride))


def _excess(shares: ndarray, top: float) -> ndarray:
    """An even share or less as 0, `top` or more as 1."""
    return ((shares - 1) / (top - 1)).clip(0, 1)


def _top(maps: Sequence[ndarray], least: float = 2.0) -> float:
    """The bright end of a common scale: few tokens lie above it, and a nearly uniform map stays bare."""
    return max(least, float(np.quantile(np.concatenate([shares.ravel() for shares in maps]), 0.998)))


def _ticks(top: float) -> tuple[tuple[float, str], ...]:
    return (0.0, "≤ 1 ×"), (0.5, f"{(1 + top) / 2:.3g} ×"), (1.0, f"≥ {top:.3g} ×")


def _bright(heat: ndarray) -> ndarray:
    """A map scaled so that all but its few highest values lie in 0..1."""
    return (heat / np.quantile(heat[heat > 0], 0.995)).clip(0, 1)


def _mean_received(maps: StageMaps, kind: int) -> ndarray | None:
    """Mean over heads and over the blocks of a kind of windows (0 regular, 1 shifted), None if there are none."""
    chosen = [heat for heat, shift in zip(maps.received, maps.shifts, strict=True) if any(shift) == bool(kind)]
    return np.mean([heat.mean(0) for heat in chosen], 0) if chosen else None


def _last_blocks(maps: StageMaps) -> tuple[int | None, int | None]:
    """The last block with regular and the last with shifted windows."""
    last: list[int | None] = [None, None]
    for block, shift in enumerate(maps.shifts):
        last[any(shift)] = block
    return last[0], last[1]


def _place(e: Explanation, on: Canvas) -> tuple[float, float]:
    """The middle of the point's pixel on the canvas."""
    down, across = (new / old for new, old in zip(on.frame.photo, e.frame.photo, strict=True))
    return (e.point.x + 0.5) * across, (e.point.y + 0.5) * down


def _resized(heat: ndarray, on: Canvas) -> ndarray:
    """A map on the photo's pixels, at the canvas's size."""
    height, width = on.frame.photo
    return np.asarray(Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR))


def _columns(heads: int) -> int:
    """Columns for a grid of heads: the widest of a few that leaves no gap."""
    return next((columns for columns in (6, 8, 5, 4) if heads % columns == 0), min(heads, 6))


def _padding_note(shares: Sequence[ndarray]) -> str:
    mean = float(np.mean([share.mean() for share in shares]))
    return f"; {percent(mean)} of the attention went to padding and is left out" if mean > 0 else ""


def _unseen(e: Explanation) -> tuple[tuple[str, str], ...]:
    return () if e.frame.seen().all() else (UNSEEN,)


def percent(value: float) -> str:
    """A share for people."""
    return f"{100 * value:.1f} %" if value >= 0.001 else "< 0.1 %"


def shortened(text: str, most: int = 40) -> str:
    """A class name that fits a title."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
