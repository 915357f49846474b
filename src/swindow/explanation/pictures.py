"""Every picture of an explanation, each one function from the arrays to panels.

Attention has one unit everywhere: 1 × is an even share over what could have been attended to. Colour begins above it,
so that a photo left bare means attention without preference.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from swindow.explanation.answers import prediction, why
from swindow.explanation.canvas import EVIDENCE, LARGE, Canvas, Panel, Picture, canvas
from swindow.explanation.found import found
from swindow.explanation.marks import percent, place, point_mark, resized, shortened, subject
from swindow.explanation.results import Explanation, PointStage, StageMaps

Board = Callable[[int], Canvas]

SMALL = 400
WINDOW = ("box", "the tokens that it sees")
UNSEEN = ("unseen", "not seen by the model")
KINDS = ("regular windows", "shifted windows")
POOLED = " The head then joins all stages and pools over the whole map, so that everything can reach the pixel."


class Shown(NamedTuple):
    """A stage of the backbone or of a U-Net's decoder, by its name."""

    name: str
    maps: StageMaps
    followed: PointStage


def pictures(e: Explanation) -> list[Picture]:
    """All pictures of an explanation, the most telling first."""
    board = functools.cache(lambda longest: canvas(e.photo, e.frame, longest))
    encoder = _shown("stage", e.stages, e.point.stages)
    decoder = _shown("decoder", e.decoder, e.point.decoder)
    parts = [(part, suffix) for part, suffix in ((encoder, ""), (decoder, "-decoder")) if part]
    answers = [_gradcam(e, board)]
    if e.segmented is not None:
        answers = [prediction(e, e.segmented, board), *why(e, e.segmented, board)]
    if e.detected is not None:
        answers = found(e, e.detected, board)
    if e.rollout is None:  # no window attention
        return answers
    return [
        *answers,
        _rollout(e, e.rollout, board),
        *(_point(e, part, suffix, board) for part, suffix in parts),
        *(_point_heads(e, part[-1], suffix, board) for part, suffix in parts),
        _receptive_field(e, encoder + decoder, board),
        *(_stages(e, part, suffix, board) for part, suffix in parts),
        *(_heads(e, shown, board) for shown in encoder + decoder),
    ]


def _shown(kind: str, stages: Sequence[StageMaps], followed: Sequence[PointStage]) -> list[Shown]:
    pairs = zip(stages, followed, strict=True)
    return [Shown(f"{kind} {number}", maps, point) for number, (maps, point) in enumerate(pairs, start=1)]


def _gradcam(e: Explanation, board: Board) -> Picture:
    large, target = board(LARGE), shortened(e.target)
    stage = f"the map of stage {e.gradcam_stage + 1}"
    nothing = "" if e.gradcam.any() else "; nothing in this map speaks for the class"
    return Picture(
        name="gradcam",
        title=f"Grad-CAM for “{target}”",
        subtitle=f"probability {percent(e.probability)}, evidence in {stage}{nothing}",
        meaning=f"Where the model found evidence for “{target}”: {stage}, each of its "
        "channels weighed by how much it raises that class.",
        panels=(
            Panel(pixels=large.plain(), caption="photo"),
            Panel(pixels=large.overlay(resized(e.gradcam, large)), caption="evidence"),
        ),
        columns=2,
        bar=EVIDENCE,
        key=_unseen(e),
    )


def _rollout(e: Explanation, rollout: ndarray, board: Board) -> Picture:
    large, shares = board(LARGE), rollout * rollout.size
    top = _top([shares], least=1.25)  # a mean over all tokens is smooth
    end = "decoder" if e.decoder else "encoder"
    made, features = "the mean of the final tokens", "the final features"
    if e.segmented is not None:
        made, features = f"the pixel's token at the {end}'s end", f"the pixel's features at the end of the {end}"
    if e.detected is not None:
        made, features = "the last token in the middle of the box", "the backbone's features in the middle of the box"
    ways = "windows, residual connections and merging"
    ways = f"{ways}, and half by half through every join of the decoder" if e.decoder else ways
    point = None if e.segmented is None and e.detected is None else place(e, large)
    return Picture(
        name="rollout",
        title="Attention roll-out",
        subtitle=f"each patch's share in {made}; 1 × is an even share",
        meaning=f"From which patches {features} are made, going by attention alone: the weights of all blocks, "
        f"followed backwards through {ways}. It knows no class.",
        panels=(
            Panel(pixels=large.plain(), caption="photo", point=point),
            Panel(pixels=_above(shares, top, large, e.stages[0]), caption="roll-out", point=point),
        ),
        columns=2,
        bar=_ticks(top),
        key=_unseen(e) if point is None else (point_mark(e), *_unseen(e)),
    )


def _stages(e: Explanation, part: list[Shown], suffix: str, board: Board) -> Picture:
    means = [[_mean_received(shown.maps, kind) for shown in part] for kind in (0, 1)]
    means = [row for row in means if any(heat is not None for heat in row)]
    top = _top([heat for row in means for heat in row if heat is not None])
    return Picture(
        name=f"stages{suffix}",
        title="Attention received, stage by stage" + (" of the decoder" if suffix else ""),
        subtitle="mean over heads and blocks; 1 × is an even share"
        + _padding_note([share for shown in part for share in shown.maps.padding]),
        meaning="How much each token is looked at by those that can see it, mean over heads and blocks: in regular "
        "windows and, below, in shifted ones.",
        panels=tuple(
            None
            if heat is None
            else Panel(pixels=_above(heat, top, board(SMALL), shown.maps), caption=f"{shown.name} · {kind}")
            for kind, row in zip(KINDS, means, strict=False)
            for shown, heat in zip(part, row, strict=True)
        ),
        columns=len(part),
        bar=_ticks(top),
        key=_unseen(e),
    )


def _heads(e: Explanation, shown: Shown, board: Board) -> Picture:
    maps = shown.maps
    received, kind = maps.received[-1], KINDS[any(maps.shifts[-1])]
    top = _top(list(received))
    return Picture(
        name=f"heads-{shown.name.replace(' ', '')}",
        title=f"Attention received, head by head: {shown.name}, block {len(maps.received)}",
        subtitle=f"{kind} of {maps.window[0]} × {maps.window[1]} tokens; 1 × is an even share"
        + _padding_note([maps.padding[-1]]),
        meaning=f"What each head of the last block of {shown.name} looks at.",
        panels=tuple(
            Panel(pixels=_above(heat, top, board(SMALL), maps), caption=f"head {head + 1}")
            for head, heat in enumerate(received)
        ),
        columns=_columns(len(received)),
        bar=_ticks(top),
        key=_unseen(e),
    )


def _point(e: Explanation, part: list[Shown], suffix: str, board: Board) -> Picture:
    last = [_last_blocks(shown.maps) for shown in part]
    kinds = [kind for kind in (0, 1) if any(pair[kind] is not None for pair in last)]
    return Picture(
        name=f"point{suffix}",
        title=f"What the {subject(e)} attends to" + (" in the decoder" if suffix else ""),
        subtitle="mean over heads; bare photo: an even share or less; brightest: each panel's maximum, if 2 × or more",
        meaning="The weights that the point's token gives to each token of its window, in the last regular and the "
        "last shifted block of each stage. Every panel is enlarged around the window; a coloured square is a token.",
        panels=tuple(
            None if (block := pair[kind]) is None else _window_panel(e, board(2 * LARGE), shown, block)
            for kind in kinds
            for shown, pair in zip(part, last, strict=True)
        ),
        columns=len(part),
        bar=((0.0, "≤ 1 ×"), (1.0, "maximum")),
        key=(point_mark(e), WINDOW),
    )


def _point_heads(e: Explanation, shown: Shown, suffix: str, board: Board) -> Picture:
    small, maps, followed = board(SMALL), shown.maps, shown.followed
    view = followed.views[-1]
    shares = [heat * view.sum() for heat in followed.attention[-1]]
    return Picture(
        name=f"point-heads{suffix}",
        title=f"The {subject(e)}, head by head: {shown.name}, block {len(maps.received)}",
        subtitle="what each head of the point's token attends to; brightest: each panel's maximum, if 2 × or more"
        + _padding_note([followed.padding[-1]]),
        meaning=f"The same for every head of the last block of {shown.name}: heads look for different things.",
        panels=tuple(
            Panel(
                pixels=_above(share, max(2.0, float(share.max())), small, maps),
                caption=f"head {head + 1} · up to {share.max():.1f} ×",
                box=small.frame.box(view, maps.stride),
                point=place(e, small),
            )
            for head, share in enumerate(shares)
        ),
        columns=_columns(len(shares)),
        bar=((0.0, "≤ 1 ×"), (1.0, "maximum")),
        key=(point_mark(e), WINDOW, *_unseen(e)),
    )


def _receptive_field(e: Explanation, part: list[Shown], board: Board) -> Picture:
    large, patch = board(LARGE), e.stages[0].stride
    around = e.segmented is not None and not e.decoder
    can_reach = "can reach it" if e.decoder else "of the input can reach it"  # small panels, four in a row
    return Picture(
        name="receptive-field",
        title="How the point's receptive field grows"
        if e.segmented is None
        else "How the pixel's receptive field grows",
        subtitle="roll-out of the point's token by the end of each stage; every panel has its own maximum",
        meaning="Colour: from which patches the point's token is made by the end of each stage, going by attention. "
        "Outline: all that can reach it at all, whatever the weights." + (POOLED if around else ""),
        panels=tuple(
            Panel(
                pixels=large.overlay(large.frame.lay(_bright(shown.followed.rollout), patch)),
                caption=f"after {shown.name} · {100 * shown.followed.reach.mean():.0f} % {can_reach}",
                box=large.frame.box(shown.followed.reach, patch),
                point=place(e, large),
            )
            for shown in part
        ),
        columns=len(e.stages) if e.decoder or len(part) < 4 else 2,
        bar=((0.0, "0"), (1.0, "maximum")),
        key=(point_mark(e), ("box", "all that can reach it"), *_unseen(e)),
    )


def _window_panel(e: Explanation, large: Canvas, shown: Shown, block: int) -> Panel:
    """The photo around the point's window, each token's cell in one colour."""
    maps, followed = shown.maps, shown.followed
    view = followed.views[block]
    share = followed.attention[block].mean(0) * view.sum()
    box = large.frame.box(view, maps.stride)
    zoom = min(1.0, 1.6 * max(box[2] / large.frame.photo[0], box[3] / large.frame.photo[1]))
    near, origin = large.around(box, zoom)
    kind = ("regular", "shifted")[any(maps.shifts[block])]
    return Panel(
        pixels=near.overlay(near.frame.cells(_excess(share, max(2.0, float(share.max()))), maps.stride)),
        caption=f"{shown.name} · {kind} · up to {share.max():.1f} ×",
        box=box,
        point=place(e, large),
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


def _columns(heads: int) -> int:
    """Columns for a grid of heads: the widest of a few that leaves no gap."""
    return next((columns for columns in (6, 8, 5, 4) if heads % columns == 0), min(heads, 6))


def _padding_note(shares: Sequence[ndarray]) -> str:
    mean = float(np.mean([share.mean() for share in shares]))
    return f"; {percent(mean)} of the attention went to padding and is left out" if mean > 0 else ""


def _unseen(e: Explanation) -> tuple[tuple[str, str], ...]:
    return () if e.frame.seen().all() else (UNSEEN,)
