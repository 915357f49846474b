"""A training step of Mask R-CNN on a Swin, against torchvision's: `python benchmarks/mask_rcnn_vs_torchvision.py`.

Ours as it is built, by the details of either convention, and torchvision's `MaskRCNN` around the same backbone with
torchvision's feature pyramid, as one wires it by hand; 80 classes, pictures of 512x512 pixels with eight objects each,
fp32. A step is forward pass, proposals, drawing of regions, losses and backward pass. Runs alternate; a ratio is the
median over rounds of ours by theirs, of wall time and, steadier on a shared machine, of processor time.
Prints a table and writes benchmarks/results/mask-rcnn-vs-torchvision-DATE.json unless --quick.
"""

import argparse
import sys
from collections import OrderedDict
from typing import Any

import torch
from clocks import measure
from record import write_record
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

import swindow
from swindow.bench.timing import Run
from swindow.model import Model
from swindow.objects import Objects, Targets, whole_frames

CLASSES, OBJECTS = 80, 8


class Trunk(nn.Module):
    """The backbone that torchvision's detectors ask for."""

    out_channels = 256

    def __init__(self, name: str) -> None:
        super().__init__()
        self.body = swindow.backbone(name)
        self.fpn = FeaturePyramidNetwork(list(self.body.channels), self.out_channels, LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict((str(i), x) for i, x in enumerate(self.body(images))))


def theirs(name: str, size: int) -> MaskRCNN:
    """torchvision's, which leaves pictures of this size as they are."""
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
    pixels: dict[str, Any] = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "min_size": size, "max_size": size}
    return MaskRCNN(Trunk(name), CLASSES + 1, rpn_anchor_generator=anchors, **pixels).train()


def objects(size: int) -> Objects:
    """Ellipses of a sixteenth to a half of a picture's side."""
    middles, halves = torch.rand(OBJECTS, 2) * size, size * (1 + torch.rand(OBJECTS, 2) * 7) / 32
    boxes = torch.cat([middles - halves, middles + halves], 1).clamp(0, size)
    places = torch.arange(size) + 0.5
    across = (places[None] - middles[:, :1]) / halves[:, :1]
    down = (places[None] - middles[:, 1:]) / halves[:, 1:]
    masks = down.square()[:, :, None] + across.square()[:, None, :] < 1
    crowd, labels = torch.zeros(OBJECTS, dtype=torch.bool), torch.randint(0, CLASSES, (OBJECTS,))
    return Objects(boxes=boxes, labels=labels, masks=masks, crowd=crowd, areas=masks.sum((1, 2)).float())


def steps(name: str, size: int, batch: int) -> dict[str, Run]:
    """A step of each."""
    torch.manual_seed(0)
    images, truth = torch.randn(batch, 3, size, size), tuple(objects(size) for _ in range(batch))
    peer = theirs(name, size)
    told = [{"boxes": one.boxes, "labels": one.labels + 1, "masks": one.masks.to(torch.uint8)} for one in truth]

    def run_theirs() -> None:
        peer.zero_grad()
        torch.stack(list(peer(list(images), told).values())).sum().backward()

    def run_ours(model: Model) -> None:
        model.zero_grad()
        outputs = model.outputs(images)
        losses = model.head.loss(outputs, Targets(truth, whole_frames(images)))
        torch.stack(list(losses.values())).sum().backward()

    runs: dict[str, Run] = {"torchvision": run_theirs}
    for convention, proposals in {"openmmlab": (1000, 1000), "torchvision": (2000, 1000)}.items():
        fields = {"convention": convention, "regions.proposals": proposals}
        model = swindow.build(f"mask_rcnn_{name}", num_classes=CLASSES, **fields).train()
        runs[f"ours, {convention}"] = lambda model=model: run_ours(model)
    return runs


def main() -> None:
    """Measure, print, write."""
    asked = argparse.ArgumentParser(description="Mask R-CNN's training step against torchvision's")
    asked.add_argument("--backbone", default="swin_tiny")
    asked.add_argument("--size", type=int, default=512)
    asked.add_argument("--batch", type=int, default=2)
    asked.add_argument("--rounds", type=int, default=7)
    asked.add_argument("--threads", type=int, default=0)
    asked.add_argument("--quick", action="store_true", help="three rounds, nothing written to results/")
    words = asked.parse_args()
    if words.threads:
        torch.set_num_threads(words.threads)
    rounds = 3 if words.quick else words.rounds
    figures = measure(steps(words.backbone, words.size, words.batch), rounds, against="torchvision")
    for name, row in figures.items():
        ratios = f"ratio {row['ratio']:.2f}, of processor time {row['processor_ratio']:.2f}"
        sys.stdout.write(f"{name:18} {row['median']:8.3f} s   {ratios}\n")
    if not words.quick:
        setting = {name: getattr(words, name) for name in ("backbone", "size", "batch")}
        setting |= {"rounds": rounds, "threads": torch.get_num_threads()}
        sys.stdout.write(f"{write_record('mask-rcnn-vs-torchvision', {'setting': setting, 'training': figures})}\n")


if __name__ == "__main__":
    main()
