"""Swin-MoE (Hwang et al. 2022, Tutel, arXiv 2206.03382, section 5.3): Swin with experts in place of some MLPs.

Every token of the batch goes to the one or few of E experts that its router likes best. An expert takes so many tokens
and no more; those that come too late pass by, on the block's residual. Attention is V1's, its position bias V2's.
"""

import contextlib
import dataclasses
import functools
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from swindow.backbones.experts import CosineRouter, Experts, LinearRouter, Routes, importance_loss, route, switch_loss
from swindow.backbones.geometry import Sides, SmallMaps, Windowing, check_rates
from swindow.backbones.swin import SwinConfig
from swindow.backbones.swin_v2 import LogSpacedBias
from swindow.backbones.windowed import Stage, WindowAttention, WindowedBackbone
from swindow.errors import ConfigError
from swindow.layers import DropPath, Linear, Mlp, PatchMerge, init_weights
from swindow.ops.windows import Size, count
from swindow.shapes import Images, Pyramid, Tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwinMoeConfig(SwinConfig):
    """The shape of a Swin-MoE: Swin's fields, and which blocks have experts, how many, and how tokens find them."""

    kind: ClassVar[str] = "swin_moe"

    window: Sides = 12
    image_size: int | tuple[int, int] = 192
    small_maps: SmallMaps = "shrink"
    routed: tuple[tuple[int, ...], ...] = ()
    """For each stage the numbers, from 0, of the blocks that have experts; empty for none at all (the dense model)."""
    experts: int = 8
    """Experts of such a block."""
    router: Literal["linear", "cosine"] = "linear"
    """Likes an expert by a product, or by the direction of a projection (Chi et al. 2022, arXiv 2204.09179)."""
    top: int = 1
    """Experts that a token asks for."""
    capacity: float | None = 1.25
    """In training, tokens that an expert takes, per token of its even share; None takes all."""
    eval_capacity: float | None = None
    """The same in evaluation, where a limit makes the answer for an image depend on the batch that it is in; the
    published models were evaluated so, at 1.25. Under `torch.compile` None reserves room for all tokens per expert."""
    prioritized: bool = True
    """Serve first the tokens that the router is surest of (Riquelme et al. 2021, section 4.1), not those met first."""
    normalized_gates: bool = False
    """Let the weights of a token's experts sum to 1, where it asks for more than one."""
    gate_noise: float = 1.0
    """Deviation of the noise on the router's logits in training, times the number of experts."""
    balance: Literal["switch", "importance"] = "switch"
    """The loss that spreads tokens: `switch_loss`, or `importance_loss` (the published configurations)."""
    balance_weight: float = 0.01
    """Weight of that loss, summed over blocks."""
    expert_dropout: float = 0.0
    """Dropout on the experts' hidden values."""
    output_bias: bool = True
    """Biases on the second layer of MLPs and experts; the published models have none."""
    init_std: float = 0.02
    """Deviation of linear weights at the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rates(self.drop_path, self.expert_dropout)
        if self.routed and len(self.routed) != len(self.depths):
            raise ConfigError(f"routed names {len(self.routed)} stages of {len(self.depths)}; give each one a tuple")
        for blocks, depth in zip(self.routed, self.depths, strict=False):
            if not set(blocks) <= set(range(depth)):
                raise ConfigError(f"routed {blocks}: a stage of {depth} blocks has the numbers 0 to {depth - 1}")
        if self.experts < 2 or not 1 <= self.top <= self.experts:
            raise ConfigError(
                f"experts {self.experts} and top {self.top}: give at least 2 experts, and ask for 1 to all"
            )
        if any(factor is not None and factor <= 0 for factor in (self.capacity, self.eval_capacity)):
            raise ConfigError(
                f"capacity {self.capacity} and eval_capacity {self.eval_capacity} must be above 0, or none"
            )
        if self.gate_noise < 0 or self.balance_weight < 0 or self.init_std < 0:
            raise ConfigError("gate_noise, balance_weight and init_std cannot be negative")
        if self.balance == "importance" and self.gate_noise == 0:
            raise ConfigError(
                "balance 'importance' measures load by the noise; give gate_noise above 0, or take 'switch'"
            )

    def stage(self, number: int, rates: list[float]) -> "MoeStage":
        """Blocks with and without experts, unshifted and shifted in turn, and a merge unless it is the last stage."""
        routed = self.routed[number] if self.routed else ()
        blocks = [
            Block(self, number, cut, drop_path=rate, routed=index in routed)
            for index, (cut, rate) in enumerate(zip(self.windowings(number), rates, strict=True))
        ]
        return MoeStage(blocks, PatchMerge(self.channels[number]) if number + 1 < len(self.depths) else None)

    def initialise(self, module: nn.Module) -> None:
        """As `init_weights` at another deviation, and experts like linear layers."""
        init_weights(module)
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=self.init_std)
        if isinstance(module, Experts):
            for weight in (module.fc1_weight, module.fc2_weight):
                nn.init.trunc_normal_(weight, std=self.init_std)

    def build(self, *, in_channels: int, out_stages: tuple[int, ...], entries: bool = False) -> "SwinMoe":
        """The backbone that this describes, freshly initialised.

        Raises:
            ConfigError: `entries`, which a backbone that also gives losses does not have.
        """
        if entries:
            raise ConfigError("a Swin-MoE gives the maps of its stages, not what enters them; leave entries out")
        return self.assemble(SwinMoe, in_channels, out_stages)


class ExpertMlp(nn.Module):
    """A router and its experts. A token gets the answers of those that took it, weighted by the gates, or zero."""

    def __init__(self, dim: int, config: SwinMoeConfig) -> None:
        super().__init__()
        self.config = config
        self.router = (LinearRouter if config.router == "linear" else CosineRouter)(dim, config.experts)
        self.experts = Experts(
            config.experts,
            dim,
            int(config.mlp_ratio * dim),
            output_bias=config.output_bias,
            dropout=config.expert_dropout,
        )

    def forward(self, x: Tokens, losses: list[Tensor] | None = None) -> Tokens:
        """The answers; the balance loss, not weighted, is appended to `losses`."""
        tokens = x.flatten(0, 2)
        with _without_autocast(x.device):
            logits = self.router(tokens)
            deviation = self.config.gate_noise / self.config.experts
            noisy = logits + deviation * torch.randn_like(logits) if self.training and deviation else logits
            scores = noisy.softmax(1)
            routes = route(
                scores, self.config.top, normalized=self.config.normalized_gates, prioritized=self.config.prioritized
            )
            if losses is not None and self.config.balance == "switch":
                losses.append(switch_loss(scores, routes.experts))
            elif losses is not None:
                losses.append(importance_loss(logits, noisy.gather(1, routes.experts[:, -1:]), deviation))
        return self.ask(tokens, routes).to(x.dtype).view_as(x)

    def ask(self, tokens: Float[Tensor, "S C"], routes: Routes) -> Float[Tensor, "S C"]:
        """Hand each expert the tokens that it takes, and each token the weighted sum of its answers."""
        number, room = self.config.experts, self.room(routes.places)
        nobody = number * room
        seats = torch.where(routes.places < room, routes.experts * room + routes.places, nobody).flatten()
        seated = tokens.new_zeros(nobody + 1, tokens.shape[1])
        seated = seated.index_copy(0, seats, tokens.repeat_interleave(self.config.top, 0))
        answers = F.pad(self.experts(seated[:-1].unflatten(0, (number, room))).flatten(0, 1), (0, 0, 0, 1))
        return (answers.index_select(0, seats).unflatten(0, routes.gates.shape) * routes.gates[:, :, None]).sum(1)

    def room(self, places: Int64[Tensor, "S k"]) -> int:
        """Tokens that each expert takes: a share of the even one, or as many as the fullest queue holds."""
        factor = self.config.capacity if self.training else self.config.eval_capacity
        share = count(places.shape[0], self.config.experts)
        if factor is not None:
            return self.config.top * int(factor * share)
        if places.is_meta:  # queues without content: as if even
            return self.config.top * share
        return places.shape[0] if torch.compiler.is_compiling() else int(places.max()) + 1


class NetworkBias(LogSpacedBias):
    """V2's network for position biases; its answers are taken as they are, and offsets measured by the window."""

    def __init__(self, window: Size, num_heads: int) -> None:
        super().__init__(window, window, num_heads)

    def forward(self) -> Float[Tensor, "N T T"]:
        return self.mlp(self.offsets)[self.index].permute(2, 0, 1)


class Block(nn.Module):
    """Swin's block, whose MLP may be one of experts."""

    norm_first: ClassVar[bool] = True

    def __init__(
        self, config: SwinMoeConfig, stage: int, windowing: Windowing, *, drop_path: float, routed: bool
    ) -> None:
        super().__init__()
        dim, num_heads = config.channels[stage], config.num_heads[stage]
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(
            dim,
            num_heads,
            windowing,
            qkv=Linear(dim, 3 * dim, bias=config.qkv_bias),
            position_bias=NetworkBias(windowing.window, num_heads) if config.relative_bias else None,
            dropout=config.dropout,
        )
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = ExpertMlp(dim, config) if routed else _mlp(dim, config)

    def forward(self, x: Tokens, losses: list[Tensor] | None = None) -> Tokens:
        """The tokens; a balance loss, if there are experts, is appended to `losses`."""
        x = x + self.drop_path(self.attn(x, self.norm1))
        if isinstance(self.mlp, ExpertMlp):
            return x + self.drop_path(self.mlp(self.norm2(x), losses))
        return x + self.drop_path(self.mlp(x, self.norm2))


class MoeStage(Stage):
    """A stage that lets its blocks' losses out."""

    def forward(self, x: Tokens, losses: list[Tensor] | None = None) -> Tokens:
        run: Any = _judged
        if self.checkpointing and self.training:
            run = functools.partial(checkpoint, _judged, use_reentrant=False)
        for block in self.blocks:
            x, found = run(block, x)
            if losses is not None:
                losses += found
        return x


class SwinMoe(WindowedBackbone):
    """The frame of the windowed families, and `maps_and_losses` for training.

    In training, and in evaluation where `eval_capacity` is a number, tokens of all images of a batch compete for the
    experts, so that an image's answer depends on the others.
    """

    def maps_and_losses(self, images: Images) -> tuple[Pyramid, dict[str, Tensor]]:
        """What `forward` gives, and the losses that training adds to the head's, by name, each with its weight."""
        losses: list[Tensor] = []
        maps = self.stage_maps(images, losses)
        normed = tuple(self.norms[str(stage)](maps[stage]) for stage in self.out_stages)
        weight = cast(SwinMoeConfig, self.config).balance_weight
        return normed, {"expert_balance": weight * torch.stack(losses).sum()} if losses else {}

    def stage_maps(self, images: Images, losses: list[Tensor] | None = None) -> Pyramid:
        """The map of every stage up to the last one asked for; balance losses, not weighted, go to `losses`."""
        x, maps = self.embed(images), []
        for stage in self.each_stage()[: self.out_stages[-1] + 1]:
            x = stage(x, losses)
            maps.append(x)
            x = x if stage.merge is None else stage.merge(x)
        return tuple(maps)


def _judged(block: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A block's tokens and losses as a function of its input alone, which is what can be computed twice."""
    losses: list[Tensor] = []
    return block(x, losses), losses


def _mlp(dim: int, config: SwinMoeConfig) -> Mlp:
    mlp = Mlp(dim, int(config.mlp_ratio * dim), config.dropout)
    if not config.output_bias:
        mlp.fc2 = Linear(mlp.fc2.in_features, dim, bias=False)
    return mlp


def _without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else contextlib.nullcontext()


def _published(dim: int, drop_path: float, **fields: Any) -> SwinMoeConfig:
    """As in the original's configurations."""
    return SwinMoeConfig(
        dim=dim,
        depths=(2, 2, 18, 2),
        num_heads=tuple(dim // 32 * 2**stage for stage in range(4)),
        drop_path=drop_path,
        output_bias=False,
        **fields,
    )


def _routed(dim: int, drop_path: float, experts: int, **fields: Any) -> SwinMoeConfig:
    """With experts in every second block of the third stage, and in the last block."""
    return _published(
        dim,
        drop_path,
        routed=((), (), tuple(range(1, 18, 2)), (1,)),
        experts=experts,
        balance="importance",
        expert_dropout=0.1,
        init_std=0.005,
        **fields,
    )


VARIANTS = {
    "swin_moe_small_dense": _published(96, 0.2),
    **{f"swin_moe_small_e{experts}": _routed(96, 0.2, experts) for experts in (8, 16, 32, 64, 128)},
    "swin_moe_small_e32_cosine": _routed(96, 0.2, 32, router="cosine"),
    "swin_moe_base_dense": _published(128, 0.2),
    **{f"swin_moe_base_e{experts}": _routed(128, 0.3, experts) for experts in (8, 16, 32)},
    "swin_moe_base_e32_cosine": _routed(128, 0.3, 32, router="cosine"),
    "swin_moe_base_e32_top2": _routed(128, 0.3, 32, top=2),
}
