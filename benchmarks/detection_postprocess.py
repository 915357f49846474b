"""From what a box head says of regions to detections, by torchvision and by us: run `detection_postprocess.py`.

Logits and deltas of 80 classes for 1,000 regions in, the boxes, scores and labels of one picture out: ours by
`swindow.heads.judging.found_in`, and torchvision's `RoIHeads.postprocess_detections`, whose answers are the same. Once
as of a trained detector, which is sure of one class or none of a region, once with a score threshold of 0, where every
region may be of every class. Runs alternate; a ratio is the median over rounds of ours by theirs, of wall time and,
steadier on a shared machine, of processor time.
Prints a table and writes benchmarks/results/detection-postprocess-DATE.json unless --quick.
"""

import argparse
import sys
from typing import Any

import torch
from clocks import measure
from record import write_record
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads

from swindow.bench.timing import Run
from swindow.heads import MaskRcnnConfig
from swindow.heads.judging import found_in
from swindow.objects import Frames

REGIONS, CLASSES, SIZE = 1000, 80, (800, 1333)
THRESHOLDS = {"usual": 0.05, "every class": 0.0}


def said() -> tuple[Tensor, Tensor, Tensor]:
    """Regions, logits and deltas: most regions are background, the others of one class, some hard to tell."""
    torch.manual_seed(0)
    middles = torch.rand(40, 2).repeat(25, 1) * torch.tensor([SIZE[1], SIZE[0]]) + torch.randn(REGIONS, 2) * 15
    halves = torch.rand(REGIONS, 2) * 120 + 10
    regions = torch.cat([middles - halves, middles + halves], 1).clamp_min(0)
    regions = torch.minimum(regions, torch.tensor([SIZE[1], SIZE[0]] * 2).float())
    logits = torch.randn(REGIONS, CLASSES + 1)
    logits[:, -1] += 4
    sure = torch.arange(REGIONS) % 2 == 0
    logits[sure, torch.randint(0, CLASSES, (int(sure.sum()),))] += 6
    return regions, logits, torch.randn(REGIONS, CLASSES, 4)


def theirs(threshold: float) -> RoIHeads:
    """torchvision's, with parts that are not asked."""
    nothing = nn.Identity()
    return RoIHeads(nothing, nothing, nothing, 0.5, 0.5, 512, 0.25, None, threshold, 0.5, 100)


def runs(threshold: float) -> dict[str, Run]:
    """Both on the same, which they answer alike."""
    regions, logits, deltas = said()
    config = MaskRcnnConfig(convention="torchvision", score_threshold=threshold)
    frames, peer = Frames(SIZE, (SIZE,)), theirs(threshold)
    their_logits, their_deltas = logits.roll(1, 1), torch.cat([deltas[:, :1], deltas], 1).flatten(1)

    @torch.no_grad()
    def run_ours() -> Any:
        return found_in((regions,), logits.softmax(1), deltas, frames, config)[0]

    @torch.no_grad()
    def run_theirs() -> Any:
        return peer.postprocess_detections(their_logits, their_deltas, [regions], [SIZE])

    with torch.no_grad():
        found, (boxes, scores, labels) = run_ours(), run_theirs()
    assert torch.equal(found.labels + 1, labels[0])
    torch.testing.assert_close(found.boxes, boxes[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(found.scores, scores[0], rtol=0, atol=1e-5)
    return {"torchvision": run_theirs, "ours": run_ours}


def main() -> None:
    """Measure, print, write."""
    asked = argparse.ArgumentParser(description="post-processing of detections against torchvision's")
    asked.add_argument("--rounds", type=int, default=51)
    asked.add_argument("--threads", type=int, default=0)
    asked.add_argument("--quick", action="store_true", help="11 rounds, nothing written to results/")
    words = asked.parse_args()
    if words.threads:
        torch.set_num_threads(words.threads)
    rounds = 11 if words.quick else words.rounds
    figures = {
        name: measure(runs(threshold), rounds, against="torchvision", warmup=2)
        for name, threshold in THRESHOLDS.items()
    }
    for what, rows in figures.items():
        for name, row in rows.items():
            ratios = f"ratio {row['ratio']:.2f}, of processor time {row['processor_ratio']:.2f}"
            sys.stdout.write(f"{what:12} {name:12} {1000 * row['median']:8.2f} ms   {ratios}\n")
    if not words.quick:
        setting = {"regions": REGIONS, "classes": CLASSES, "rounds": rounds, "threads": torch.get_num_threads()}
        sys.stdout.write(f"{write_record('detection-postprocess', {'setting': setting, **figures})}\n")


if __name__ == "__main__":
    main()
