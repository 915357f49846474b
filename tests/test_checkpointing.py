"""Activation checkpointing, a block at a time: the same step to the bit, and fewer bytes kept for the backward pass."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swindow
from swindow.model import Model
from tiny_families import FAMILIES, tiny_of

EVERY = pytest.mark.parametrize("family", FAMILIES)
DEEP: dict[str, dict[str, Any]] = {name: {"depths": (4, 4)} for name in FAMILIES} | {
    "swin_moe": {"depths": (4, 4), "routed": ((1, 3), (0, 2))}
}


def step(model: Model, images: Tensor) -> tuple[list[Tensor], int]:
    """Logits, losses, gradients and statistics of a training step, and bytes of activations kept until its end."""
    kept: dict[int, int] = {}
    own = {x.untyped_storage().data_ptr() for x in [*model.parameters(), *model.buffers(), images]}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    def keep_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        keep(inputs[0])

    for block in model.backbone.blocks():  # what a checkpoint keeps it keeps by itself: no hook of autograd's sees it
        block.register_forward_pre_hook(keep_input)
    torch.manual_seed(7)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        outputs, losses = model.outputs_and_losses(images)
        found = [x for x in outputs if x is not None] + list(losses.values())
        total = torch.stack([x.square().sum() for x in found]).sum()
    total.backward()
    gradients = [x.grad for x in model.parameters() if x.grad is not None]
    return [*(x.detach() for x in found), *gradients, *model.buffers()], sum(kept.values())


@EVERY
def test_a_step_is_the_same_to_the_bit_and_keeps_less(family: str) -> None:
    """With dropout and stochastic depth, whose draws are made twice, and statistics, which move once."""
    plain = tiny_of(family, noise=0.3, **DEEP[family]).train()
    again = copy.deepcopy(plain)
    again.backbone.checkpoint_blocks()
    images = torch.randn(2, 3, 24, 20)
    (expected, all_of_it), (found, kept) = step(plain, images), step(again, images)
    assert len(expected) > 40
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert kept < all_of_it / 2


@EVERY
def test_in_evaluation_nothing_is_computed_twice(family: str) -> None:
    model, calls = tiny_of(family), []
    model.backbone.checkpoint_blocks()
    for block in model.backbone.blocks():
        block.register_forward_hook(lambda *_: calls.append(1))
    model(torch.randn(1, 3, 16, 16)).sum().backward()
    assert len(calls) == len(list(model.backbone.blocks()))


def test_large_maps_are_checkpointed_a_few_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swindow.backbones.windowed._PIECE", 300)
    torch.manual_seed(0)
    model = swindow.build("swin_micro", num_classes=3, dim=8, num_heads=(1, 1, 1), drop_path=0.0).train()
    images, results = torch.randn(5, 3, 24, 24), []
    for checkpointing in (False, True):
        model.backbone.checkpoint_blocks(checkpointing)
        lengths: list[int] = []
        block = next(model.backbone.blocks())
        handle = block.register_forward_hook(lambda module, given, out, lengths=lengths: lengths.append(len(out)))
        loss = model(images).square().sum()
        results.append(torch.autograd.grad(loss, list(model.parameters())))
        handle.remove()
    assert lengths == [1] * 10
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))
