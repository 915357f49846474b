"""From what was traced to plain arrays."""

from collections.abc import Sequence

from numpy import ndarray
from torch import Tensor

from swindow.explanation import windows
from swindow.explanation.results import PointStage, StageMaps
from swindow.explanation.tracing import BlockTrace
from swindow.explanation.windows import Layout, Step
from swindow.ops.windows import Size

Traces = list[list[BlockTrace]]


def best(probabilities: Tensor, classes: tuple[str, ...], most: int) -> tuple[tuple[str, float], ...]:
    """The most probable classes."""
    values, indices = probabilities.topk(min(most, len(classes)))
    return tuple((classes[index], value) for value, index in zip(values.tolist(), indices.tolist(), strict=True))


def unit(heat: ndarray) -> ndarray:
    """Scaled so that the highest is 1; a map of zeros stays one."""
    return heat / heat.max() if heat.max() > 0 else heat


def stage_maps(blocks: list[BlockTrace], stride: int) -> StageMaps:
    """Attention received in a stage."""
    return StageMaps(
        stride=stride,
        window=blocks[0].step.layout.window,
        shifts=tuple(block.step.layout.shift for block in blocks),
        received=tuple(array(block.received) for block in blocks),
        padding=tuple(array(block.padding) for block in blocks),
    )


def pooled_rollout(traces: Traces) -> ndarray:
    """Roll-out of what a classifier reads: the mean of the last stage's tokens."""
    layout, weights = traces[-1][-1].step
    uniform = weights.new_full(layout.grid, 1 / (layout.grid[0] * layout.grid[1]))
    return array(windows.rollout(uniform, _steps(traces)))


def follow(traces: Traces, tokens: list[Size]) -> tuple[PointStage, ...]:
    """A token of each stage that was traced, followed back through all stages before it."""
    return tuple(_encoder_stage(traces[: stage + 1], token) for stage, token in enumerate(tokens[: len(traces)]))


def follow_decoder(encoder: Traces, decoder: Traces, tokens: list[Size], *, entries: bool) -> tuple[PointStage, ...]:
    """The same for a U-Net's decoder, back through it and the encoder; `entries` as in `windows.unet_rollout`.

    `tokens` are those of the encoder's stages, on whose grids the decoder's lie, coarsest first.
    """
    fronts = [decoder[: stage + 1] for stage in range(len(decoder))]
    return tuple(
        _point_stage(
            front[-1],
            token,
            array(windows.unet_rollout(_start(front[-1], token), _steps(encoder), _steps(front), entries=entries)),
            windows.unet_receptive_field(
                _start(front[-1], token).cpu() > 0, _layouts(encoder), _layouts(front), entries=entries
            ).numpy(),
        )
        for front, token in zip(fronts, tokens[-2::-1], strict=False)  # without a decoder there are none
    )


def array(x: Tensor) -> ndarray:
    """A tensor's numbers in fp32."""
    return x.float().cpu().numpy()


def _encoder_stage(traces: Traces, token: Size) -> PointStage:
    start, (rows, columns) = _start(traces[-1], token), traces[0][0].step.layout.grid
    layouts = [[layout.carrying() for layout in stage] for stage in _layouts(traces)]
    here = windows.one_hot(layouts[-1][-1].grid, token, start).cpu() > 0
    reach = windows.receptive_field(here, layouts)[:rows, :columns].numpy()
    return _point_stage(traces[-1], token, array(windows.rollout(start, _steps(traces))), reach)


def _point_stage(blocks: list[BlockTrace], token: Size, rollout: ndarray, reach: ndarray) -> PointStage:
    return PointStage(
        token=token,
        attention=tuple(array(block.given) for block in blocks),
        padding=tuple(array(block.given_padding) for block in blocks),
        views=tuple(block.view.numpy() for block in blocks),
        rollout=rollout,
        reach=reach,
    )


def _start(blocks: list[BlockTrace], token: Size) -> Tensor:
    """All weight on one token at a stage's end."""
    layout, weights = blocks[-1].step
    return windows.one_hot(layout.grid, token, weights)


def _steps(traces: Traces) -> Sequence[Sequence[Step]]:
    return [[block.step for block in stage] for stage in traces]


def _layouts(traces: Traces) -> Sequence[Sequence[Layout]]:
    return [[block.step.layout for block in stage] for stage in traces]
