"""ViTs, DeiTs, hybrids and ResNets of other libraries: their random weights in ours, and what both then compute."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from swindow.checkpoints.rules import FlatBlocks, LastNorm, PairedHeads, Rule, SeparateProjections
from swindow.checkpoints.tables import State, Table, renamed
from swindow.heads import ClassifierConfig

RULES: tuple[Rule, ...] = (FlatBlocks(), LastNorm())
HUGGINGFACE_RULES: tuple[Rule, ...] = (SeparateProjections(), PairedHeads(), *RULES)


class Whole(nn.Module):
    """A backbone with the classifier that it asks for, and all its stages."""

    def __init__(self, config: Any, *, num_classes: int = 7, in_channels: int = 3) -> None:
        super().__init__()
        pool = getattr(config, "pool", "mean")
        reads_tokens = {"prefix": True} if pool in ("token", "tokens") else {}
        last = len(config.channels) - 1
        self.backbone = config.build(in_channels=in_channels, out_stages=(last,), **reads_tokens)
        self.head = ClassifierConfig(num_classes=num_classes, pool=pool).build(self.backbone.channels)

    def forward(self, images: Tensor) -> Tensor:
        return self.head.decode(self.head(self.backbone(images)))


def scramble(model: nn.Module) -> None:
    """Draw every parameter and statistic anew, so that none is zero or one and yet activations stay of order one."""
    statistics = [(name, x) for name, x in model.named_buffers() if name.endswith(("running_mean", "running_var"))]
    for name, value in [*model.named_parameters(), *statistics]:
        if value.ndim > 1:
            nn.init.normal_(value.data, std=0.5 if value.shape[0] == 1 else value[0].numel() ** -0.5)
        elif name.endswith(("weight", "running_var")):
            nn.init.uniform_(value.data, 0.5, 1.5)
        else:
            nn.init.normal_(value.data, std=0.2)


def ours_of(state: State, table: Table, rules: Sequence[Rule] = RULES) -> State:
    """Their tensors under our names, none left over."""
    found, unknown = renamed(state, table.to_ours)
    assert unknown == ()
    for rule in rules:
        found = rule.read(found)
    return found


def theirs_of(state: State, table: Table, rules: Sequence[Rule] = RULES) -> State:
    """Our tensors under their names, none left over."""
    for rule in reversed(rules):
        state = rule.write(state)
    found, unknown = renamed(state, table.to_theirs)
    assert unknown == ()
    return found


def same_weights(config: Any, theirs: nn.Module, table: Table, rules: Sequence[Rule] = RULES) -> Whole:
    """Our model of `config` with the scrambled weights of `theirs`; both in eval mode."""
    scramble(theirs)
    ours = Whole(config)
    ours.load_state_dict(ours_of(theirs.state_dict(), table, rules))
    theirs.eval()
    return ours.eval()


@torch.no_grad()
def assert_same(ours: Whole, theirs: nn.Module, images: Tensor) -> None:
    """Logits, and maps of timm's ViTs after every stage of ours; in fp32 within 1e-5, in fp64 within 1e-10."""
    close = 1e-10 if images.dtype == torch.float64 else 1e-5
    logits = theirs(images)
    assert (logits - logits[:, :1]).abs().max() > 0.1  # a comparison of noughts proves nothing
    assert_close(ours(images), logits, close)
    if not hasattr(theirs, "forward_intermediates"):
        return
    body, maps = ours.backbone, ours.backbone.stage_maps(images)
    depths = torch.tensor(body.config.depths).cumsum(0) - 1
    final, sequences = theirs.forward_intermediates(images, indices=depths.tolist(), output_fmt="NLC")
    for found, expected in zip(maps, sequences, strict=True):
        assert_close(found.flatten(1, 2), expected, close)
    assert_close(body(images)[-1].flatten(1, 2), final[:, body.config.num_prefix :], close)


def assert_close(found: Tensor, expected: Tensor, close: float) -> None:
    """Of one shape, and nowhere further apart than `close` of the largest value, or of one."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= close * expected.abs().max().clamp(min=1)


def without_gradient(model: nn.Module, images: Tensor) -> list[str]:
    """Names of parameters that the squares of the outputs do not depend on."""
    model.train()(images).square().sum().backward()
    return [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]


def changed_attributes(before: nn.Module, after: nn.Module) -> list[str]:
    """Attributes of any module that differ, those with tensors by value."""
    pairs = zip(before.named_modules(), after.named_modules(), strict=True)
    return [
        f"{name}.{key}"
        for (name, old), (_, new) in pairs
        for key in vars(old).keys() | vars(new).keys()
        if key != "_modules" and not _equal(vars(old).get(key), vars(new).get(key))
    ]


def _equal(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor):
        return isinstance(new, Tensor) and torch.equal(old, new)
    if isinstance(old, dict):
        return isinstance(new, dict) and list(old) == list(new) and all(_equal(old[key], new[key]) for key in old)
    return bool(old == new)


def gradients(model: Whole, images: Tensor, *, checkpointing: bool) -> list[Tensor]:
    """Logits and every gradient of a training step, with random numbers that are always the same."""
    model.backbone.checkpoint_blocks(checkpointing)
    model.zero_grad()
    torch.manual_seed(7)
    logits = model.train()(images)
    logits.square().sum().backward()
    return [logits, *(parameter.grad.clone() for parameter in model.parameters())]  # type: ignore[union-attr]
