"""The paper's Table 5 on this machine: `python benchmarks/table5.py [--quick] [--batch N] [--threads N]`.

Self-attention of each stage of a Swin-T, 224 px, from queries, keys and values to the output, in four ways:

* windows without a shift;
* shifted windows by cyclic shift: the map is rolled, and a mask keeps apart what was not neighbours;
* shifted windows by padding: the map is padded until the shifted windows are whole, each of them is computed, and a
  mask hides the padding (Swin, section 3.2: "a naive solution");
* a sliding window: every token attends to the window around it, its keys and values gathered by unfolding.

All of them do their products through torch's SDPA, without learned position biases, so that they differ in the way of
shifting alone; a last row is the cyclic shift through the backend that a model would take by itself. Runs alternate;
figures are medians, ratios medians over rounds. Prints our ratios beside the paper's, which are of a V100, and writes
benchmarks/results/table5-DATE.json.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from record import write_record
from torch import Tensor
from torch.nn import functional as F

from swindow.bench.timing import interleave, ratio, spread
from swindow.ops.attention import Backend, window_attention
from swindow.ops.windows import Size, merge, partition

CALLS = 10
SETTLING = "settling"  # a cyclic shift that is run and not reported
WINDOW, SHIFT = (7, 7), (3, 3)
STAGES = ((56, 3), (28, 6), (14, 12), (7, 24))  # tokens a side, heads of 32 channels
# Milliseconds of stages 1 to 4 (Swin, table 5; V100). Its sliding window is the naive one: the other is a CUDA kernel.
PAPER = {
    "no shift": (2.8, 1.7, 1.2, 0.9),
    "cyclic shift": (3.0, 1.9, 1.3, 1.0),
    "padding": (3.3, 2.3, 1.9, 2.2),
    "sliding": (122.5, 38.3, 12.1, 7.6),
}


def cyclic(qkv: Tensor, shift: Size = SHIFT, backend: Backend = "sdpa") -> Tensor:
    """Shifted windows by rolling; a map that is one window has nothing to shift."""
    shift = shift if qkv.shape[1] > WINDOW[0] else (0, 0)
    return window_attention(qkv, None, window=WINDOW, shift=shift, scale=qkv.shape[-1] ** -0.5, backend=backend)


def padded(qkv: Tensor) -> Tensor:
    """Shifted windows by padding on both sides: a row and a column of windows more, and a mask for what is padding."""
    height, width = qkv.shape[1:3]
    pads = [(window - shift, shift) for window, shift in zip(WINDOW, SHIFT, strict=True)]
    (above, below), (left, right) = ((before, after) for before, after in pads)
    whole = F.pad(qkv, (0, 0, 0, 0, 0, 0, left, right, above, below))
    real = F.pad(torch.ones(1, height, width, dtype=torch.bool, device=qkv.device), (left, right, above, below))
    windows = partition(whole, WINDOW).flatten(2, 3)  # B G T 3 N D
    keys = partition(real, WINDOW).flatten(2)  # 1 G T
    seen = keys | ~keys.any(-1, keepdim=True)  # a window of padding alone sees itself: a softmax over nothing is NaN
    query, key, value = (x.transpose(2, 3) for x in windows.unbind(3))  # B G N T D
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, :, None, None])
    grid = whole.shape[1], whole.shape[2]
    out = merge(out.transpose(2, 3).unflatten(2, WINDOW), grid)
    return out[:, above : above + height, left : left + width]


def sliding(qkv: Tensor) -> Tensor:
    """Every token to the 7 x 7 tokens around it that are on the map."""
    batch, height, width, _, heads, dim = qkv.shape
    query, key, value = qkv.permute(3, 0, 4, 1, 2, 5)  # B N H W D
    around = [_around(x.flatten(0, 1)) for x in (key, value)]  # BN HW T D
    real = _around(torch.ones(1, height, width, 1, device=qkv.device, dtype=qkv.dtype))[..., 0] > 0  # 1 HW T
    query = query.flatten(0, 1).flatten(1, 2)[:, :, None]  # BN HW 1 D
    out = F.scaled_dot_product_attention(query, *around, attn_mask=real[:, :, None])
    return out.view(batch, heads, height, width, dim).permute(0, 2, 3, 1, 4)


def _around(x: Tensor) -> Tensor:
    """``M H W D`` to ``M HW T D``: each token's neighbourhood, zeros beyond the border."""
    margins = [window // 2 for window in WINDOW]
    columns = F.unfold(x.permute(0, 3, 1, 2), WINDOW, padding=margins)  # M DT HW
    return columns.unflatten(1, (x.shape[3], -1)).permute(0, 3, 2, 1)


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "no shift": lambda qkv: cyclic(qkv, (0, 0)),
    "cyclic shift": cyclic,
    "padding": padded,
    "sliding": sliding,
    "cyclic shift, auto": lambda qkv: cyclic(qkv, backend="auto"),
}


def measure(*, batch: int, rounds: int) -> dict[str, dict[str, Any]]:
    """For each stage and way the median milliseconds and the ratio to the cyclic shift."""
    maps = {f"stage {number}": (side, heads) for number, (side, heads) in enumerate(STAGES, start=1)}
    noise = {stage: torch.randn(batch, side, side, 3, heads, 32) for stage, (side, heads) in maps.items()}
    # Whoever comes after the sliding window pays for the hundreds of megabytes that it gave back: nobody who counts.
    order = ("sliding", SETTLING, "no shift", "cyclic shift", "padding", "cyclic shift, auto")
    runs = {(stage, name): _repeated(name, qkv) for stage, qkv in noise.items() for name in order}
    with torch.no_grad():
        samples = interleave(runs, rounds=rounds)
    samples = {key: [seconds / _calls(key[1]) for seconds in times] for key, times in samples.items()}
    return {
        stage: {
            name: {
                "ms": spread(samples[stage, name]).median * 1e3,
                "to_cyclic": ratio(samples[stage, name], samples[stage, "cyclic shift"]),
                "paper_to_cyclic": PAPER[name.removesuffix(", auto")][number] / PAPER["cyclic shift"][number],
            }
            for name in WAYS
        }
        for number, stage in enumerate(maps)
    }


def _calls(name: str) -> int:
    """How often an operation runs in a row, so that it does not pay for the cache that its predecessor filled."""
    return 1 if name == "sliding" else CALLS


def _repeated(name: str, qkv: Tensor) -> Callable[[], None]:
    def run() -> None:
        for _ in range(_calls(name)):
            WAYS["cyclic shift" if name == SETTLING else name](qkv)

    return run


def show(table: dict[str, dict[str, Any]]) -> None:
    """Our milliseconds and ratios beside the paper's ratios."""
    sys.stdout.write(f"{'':20}" + "".join(f"{stage:>26}" for stage in table) + "\n")
    sys.stdout.write(f"{'':20}" + f"{'ms  ÷ cyclic   paper':>26}" * len(table) + "\n")
    for name in WAYS:
        rows = [stage[name] for stage in table.values()]
        cells = "".join(f"{row['ms']:12.2f}{row['to_cyclic']:7.2f}{row['paper_to_cyclic']:7.2f}" for row in rows)
        sys.stdout.write(f"{name:20}{cells}\n")


def main() -> None:
    """Measure, print, write."""
    asked = argparse.ArgumentParser(description="Table 5 of the Swin paper on this machine")
    asked.add_argument("--quick", action="store_true", help="three rounds, nothing written")
    asked.add_argument("--batch", type=int, default=8)
    asked.add_argument("--threads", type=int, default=0)
    words = asked.parse_args()
    torch.manual_seed(0)
    if words.threads:
        torch.set_num_threads(words.threads)
    rounds = 3 if words.quick else 15
    table = measure(batch=words.batch, rounds=rounds)
    show(table)
    if not words.quick:
        setting = {"batch": words.batch, "rounds": rounds, "threads": torch.get_num_threads()}
        sys.stdout.write(f"{write_record('table5', {'setting': setting, 'stages': table})}\n")


if __name__ == "__main__":
    main()
