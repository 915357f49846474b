"""A window that slides over a large picture: `python benchmarks/sliding.py [--side 4096] [--window 512]`.

Peak resident memory of a process that labels every pixel, above what it holds once the model is loaded (the picture and
the answer count), and the time of that against the model's alone on the same tiles, normalised beforehand. Passes of
the two alternate; a ratio is the median over rounds, of wall time and, steadier on a shared machine, of processor time.
`inside` is the whole time of the sliding passes by what the model took in them. Both in fp32 and in the precision that
is chosen by itself. Writes a dated record to results/ unless --quick.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from record import write_record
from torch import Tensor

import swindow
from swindow.devices import autocast, peak_memory
from swindow.inference import ReadyModel, ready
from swindow.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from swindow.rasters import InMemory
from swindow.sliding import Segmenter, Views

LIMITS = {"memory_gb": 1.5, "ratio": 1.15}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="upernet_swin_tiny")
    parser.add_argument("--classes", type=int, default=150)
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", default=["fp32", "auto"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(memory_of(asked, asked.child)))
        return
    figures: dict[str, Any] = {"limits": LIMITS, **{name: getattr(asked, name) for name in KEPT}}
    for precision in asked.precisions:
        found = memory_in_a_process_of_its_own(precision) | times_of(asked, precision)
        figures[found["precision"]] = found
        print(json.dumps({name: value for name, value in found.items() if not isinstance(value, list)}, indent=1))
    if not asked.quick:
        print(write_record("sliding", figures))


KEPT = ("model", "classes", "side", "window", "rounds")


def model_of(asked: argparse.Namespace, precision: str) -> ReadyModel:
    """The model as it is freshly initialised, on windows."""
    torch.manual_seed(0)
    model = swindow.build(asked.model, num_classes=asked.classes).eval()
    size = (asked.window, asked.window)
    model.preprocess = Preprocess(size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, fit="native")
    return ready(model, device="cpu", precision=precision)


def picture_of(asked: argparse.Namespace) -> InMemory:
    """A picture of noise."""
    generator = torch.Generator().manual_seed(0)
    return InMemory(torch.randint(256, (3, asked.side, asked.side), generator=generator, dtype=torch.uint8))


def memory_in_a_process_of_its_own(precision: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--child", precision], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def memory_of(asked: argparse.Namespace, precision: str) -> dict[str, Any]:
    """What labelling takes above the loaded model, in bytes of 10⁹."""
    model = model_of(asked, precision)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    loaded = peak_memory(torch.device("cpu"))
    Segmenter(model, Views(mode="slide")).labels(picture_of(asked))
    peak = peak_memory(torch.device("cpu"))
    return {"precision": model.precision, "loaded_gb": loaded / 1e9, "memory_gb": (peak - loaded) / 1e9}


def times_of(asked: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Seconds of sliding, and of the model alone on the same tiles."""
    model, picture = model_of(asked, precision), picture_of(asked)
    tiles = Tiles(picture)
    clock = Clock(model.model)
    Segmenter(model, Views(mode="slide")).labels(tiles)  # also warms up
    bare_pass(model, picture, tiles.places[:2])
    places = tiles.places.copy()
    bare, sliding, inside = [], [], []
    for _ in range(asked.rounds):
        bare.append(bare_pass(model, picture, places))
        clock.seconds = 0.0
        began, processor = time.perf_counter(), time.process_time()
        Segmenter(model, Views(mode="slide")).labels(picture)
        sliding.append((time.perf_counter() - began, time.process_time() - processor))
        inside.append(sliding[-1][0] / clock.seconds)
    ratios = [[ours[place] / theirs[place] for ours, theirs in zip(sliding, bare, strict=True)] for place in (0, 1)]
    return {
        "tiles": len(places),
        "wall_ratio": statistics.median(ratios[0]),
        "processor_ratio": statistics.median(ratios[1]),
        "inside_ratio": statistics.median(inside),
        "sliding_s": statistics.median(wall for wall, _ in sliding),
        "bare_s": statistics.median(wall for wall, _ in bare),
        "wall_ratios": ratios[0],
        "processor_ratios": ratios[1],
        "inside_ratios": inside,
    }


def bare_pass(model: ReadyModel, picture: InMemory, places: list[tuple[int, int, int, int]]) -> tuple[float, float]:
    """Wall and processor seconds of ``model(tile)`` for every tile, nothing done with what it says."""
    wall = processor = 0.0
    for place in places:
        tile: Tensor = model.preprocess.normalize(picture.window(*place)[None])
        with torch.inference_mode(), autocast(model.device, model.precision):
            began, worked = time.perf_counter(), time.process_time()
            model.model(tile)
            wall, processor = wall + time.perf_counter() - began, processor + time.process_time() - worked
    return wall, processor


class Tiles(InMemory):
    """A picture that remembers which windows it was asked for."""

    def __init__(self, picture: InMemory) -> None:
        super().__init__(picture.pixels)
        object.__setattr__(self, "places", [])

    places: list[tuple[int, int, int, int]]

    def window(self, top: int, left: int, height: int, width: int) -> Tensor:
        self.places.append((top, left, height, width))
        return super().window(top, left, height, width)


class Clock:
    """How long a model's forward passes take, together."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.seconds = 0.0
        model.register_forward_pre_hook(lambda *_: setattr(self, "began", time.perf_counter()))
        model.register_forward_hook(
            lambda *_: setattr(self, "seconds", self.seconds + time.perf_counter() - self.began)
        )

    began: float


if __name__ == "__main__":
    main()
