"""UPerNet's forward pass and decoding against transformers': `python benchmarks/upernet_vs_transformers.py [--train]`.

`UperNetForSemanticSegmentation` with the same Swin behind it, 150 classes, an image in and logits of every pixel out,
fp32, batch 1, on a CPU; `tests/test_parity_segmentation.py` shows that both compute the same. Ours as it is, and what
`swindow.optimize` makes of it. Runs alternate; a ratio is the median over rounds of ours by theirs, of wall time and,
steadier on a shared machine, of processor time. With --train also a training step of each, batch 2 (batch norm wants
more than one): forward, both losses, backward; three rounds.
Prints a table and writes benchmarks/results/upernet-vs-transformers-DATE.json unless --quick.
"""

import argparse
import sys

import torch
from clocks import measure
from record import write_record
from torch import Tensor, nn
from transformers import SwinConfig, UperNetConfig, UperNetForSemanticSegmentation

import swindow
from swindow.bench.timing import Run
from swindow.model import Model

CLASSES, BATCH = 150, 2


def theirs(ours: Model) -> nn.Module:
    """transformers' model of the same shape."""
    shape = ours.config.backbone
    stages = [f"stage{number}" for number in range(1, len(shape.depths) + 1)]
    backbone = SwinConfig(
        embed_dim=shape.dim, depths=list(shape.depths), num_heads=list(shape.num_heads), out_features=stages
    )
    aside = shape.channels[-2]
    return UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=backbone, num_labels=CLASSES, auxiliary_in_channels=aside)
    )


def inference(ours: Model, peer: nn.Module, size: int) -> dict[str, Run]:
    """Logits of every pixel of one image."""
    image = torch.randn(1, 3, size, size)
    fast = swindow.optimize(ours.eval(), size=size)
    peer.eval()

    def run_theirs() -> Tensor:
        with torch.no_grad():
            return peer(image).logits

    def run_ours() -> Tensor:
        with torch.no_grad():
            return ours(image)

    assert run_ours().shape == run_theirs().shape == fast(image).shape
    return {"transformers": run_theirs, "ours": run_ours, "ours, optimized": lambda: fast(image)}


def training(ours: Model, peer: nn.Module, size: int) -> dict[str, Run]:
    """Losses and gradients of two images."""
    images, labels = torch.randn(BATCH, 3, size, size), torch.randint(0, CLASSES, (BATCH, size, size))
    ours.train(), peer.train()

    def run_theirs() -> None:
        peer.zero_grad()
        peer(images, labels=labels).loss.backward()

    def run_ours() -> None:
        ours.zero_grad()
        torch.stack(list(ours.head.loss(ours.outputs(images), labels).values())).sum().backward()

    return {"transformers": run_theirs, "ours": run_ours}


def main() -> None:
    """Measure, print, write."""
    asked = argparse.ArgumentParser(description="UPerNet against transformers'")
    asked.add_argument("--backbone", default="swin_tiny")
    asked.add_argument("--size", type=int, default=512)
    asked.add_argument("--rounds", type=int, default=7)
    asked.add_argument("--threads", type=int, default=0)
    asked.add_argument("--train", action="store_true", help="also a training step")
    asked.add_argument("--quick", action="store_true", help="three rounds, nothing written to results/")
    words = asked.parse_args()
    if words.threads:
        torch.set_num_threads(words.threads)
    rounds = 3 if words.quick else words.rounds
    ours = swindow.build(f"upernet_{words.backbone}", num_classes=CLASSES)
    peer = theirs(ours)
    figures = {"inference": measure(inference(ours, peer, words.size), rounds, against="transformers")}
    if words.train:
        figures["training"] = measure(training(ours, peer, words.size), 3, against="transformers")
    for what, rows in figures.items():
        for name, row in rows.items():
            ratios = f"ratio {row['ratio']:.2f}, of processor time {row['processor_ratio']:.2f}"
            sys.stdout.write(f"{what:10} {name:16} {row['median']:8.3f} s   {ratios}\n")
    if not words.quick:
        setting = {
            "backbone": words.backbone,
            "size": words.size,
            "rounds": rounds,
            "batch": 1,
            "training batch": BATCH,
        }
        setting["threads"] = torch.get_num_threads()
        sys.stdout.write(f"{write_record('upernet-vs-transformers', {'setting': setting, **figures})}\n")


if __name__ == "__main__":
    main()
