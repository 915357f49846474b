"""Many processes as one run: which of them this is, how a model is spread over them, and what they agree on.

Torch's own engine does the work: `DistributedDataParallel` copies a model to every process, FSDP2's `fully_shard` cuts
it up. Models know nothing of either. Without ``torchrun`` there is one process, no group, and every function here is
the identity.
"""

import contextlib
import dataclasses
import datetime
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from swindow.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

T = TypeVar("T")

PATIENCE = datetime.timedelta(minutes=30)
"""How long processes wait for each other before they take one for dead: evaluation and saving are waited for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How a model is spread over several processes. One process alone needs none."""

    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """A whole model in every process (ddp; what auto means), or cut up by blocks (fsdp: FSDP2's fully_shard)."""
    gather: Literal["fp32", "bf16"] = "fp32"
    """Precision in which fsdp puts a block's parameters together; gradients are summed in fp32 either way."""
    regather: bool = True
    """Fsdp drops a block's parameters after its forward pass and puts them together again for the backward pass."""
    offload: bool = False
    """Fsdp keeps parameters, gradients and the optimiser's state in the processor's memory."""
    sync_norm: bool = True
    """Batch norms on GPUs see the batches of all processes; on CPUs they see their own, and keep the first one's."""

    def __post_init__(self) -> None:
        if self.strategy != "fsdp" and (self.offload or self.gather != "fp32" or not self.regather):
            raise ConfigError("parallel.offload, gather and regather are fsdp's; add --parallel.strategy fsdp")


@dataclasses.dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them."""

    rank: int = 0
    """Which one this is, in [0, world)."""
    world: int = 1
    """How many there are."""
    local: int = 0
    """Which one of this machine's."""

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.monitored_barrier(_talk(), PATIENCE)

    def highest(self, value: int) -> int:
        """The largest of everybody's values: how processes agree to stop, each with reasons of its own."""
        if self.world == 1:
            return value
        agreed = torch.tensor(value, dtype=torch.int64)
        dist.all_reduce(agreed, dist.ReduceOp.MAX, _talk())
        return int(agreed)

    def sums(self, values: Tensor) -> Tensor:
        """Elementwise sums of everybody's values, in fp64 on the CPU."""
        total = values.detach().to("cpu", torch.float64, copy=True)
        if self.world > 1:
            dist.all_reduce(total, dist.ReduceOp.SUM, _talk())
        return total

    def first_of(self, value: T) -> T:
        """The first process's value, everywhere."""
        if self.world == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, group=_talk())
        return box[0]

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the first one's values of these tensors, in place."""
        if self.world > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def everyones(self, value: T) -> list[T]:
        """The values of all, in order of rank."""
        if self.world == 1:
            return [value]
        boxes: list[Any] = [None] * self.world
        dist.all_gather_object(boxes, value, group=_talk())
        return boxes


ALONE = Ranks()

_GROUPS: list[Any] = []
_torch: Any = dist  # whose types leave out half of what is documented


def _talk() -> Any:
    """The group for small things on the CPU, that never waits for a GPU."""
    if not _GROUPS:
        _GROUPS.append(dist.new_group(backend="gloo", timeout=PATIENCE))
    return _GROUPS[0]


def standing() -> Ranks:
    """Which of the processes that were started together this is, by its environment alone; joins nothing.

    Raises:
        ConfigError: only some of RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set.
    """
    _heed_slurm()
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    given = [name for name in needed if name in os.environ]
    if "RANK" not in given and "MASTER_ADDR" not in given:
        return ALONE
    if len(given) < len(needed):
        missing = ", ".join(name for name in needed if name not in given)
        raise ConfigError(f"{', '.join(given)} set and {missing} not: start processes with torchrun, or --devices")
    rank, world, local = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Ranks(rank, world, local)


def _heed_slurm() -> None:
    """Where ``srun`` started several processes and torchrun none, say the same in torch's variables.

    Which machine is the first is not SLURM's to say: MASTER_ADDR names it.
    """
    if "RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    if "MASTER_ADDR" not in os.environ:
        raise ConfigError(
            "srun started several processes and MASTER_ADDR is not set; in the sbatch script, export MASTER_ADDR="
            '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        )
    names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    os.environ.update({name: os.environ[theirs] for name, theirs in names.items()})
    os.environ.setdefault("MASTER_PORT", "29500")  # torchrun's own default


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` or SLURM's ``srun`` started; alone where neither did.

    A group that the program already has is used, and left as it is.

    Raises:
        ConfigError: only some of RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set.
    """
    if dist.is_initialized():
        try:
            yield Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
        finally:
            _GROUPS.clear()
        return
    ranks = standing()
    if ranks.world == 1:
        yield ALONE
        return
    on_gpu = torch.cuda.is_available()
    if on_gpu and ranks.local < torch.cuda.device_count():  # or they are to work on the processor, or will be refused
        torch.cuda.set_device(ranks.local)
    store = _fresh(next(iter(_torch.rendezvous("env://", timeout=PATIENCE)))[0])
    kinds = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(kinds, store=store, rank=ranks.rank, world_size=ranks.world, timeout=PATIENCE)
    try:
        yield ranks
    except BaseException:
        _GROUPS.clear()  # the others may wait for this one: that it ends is what tells them, so it waits for nobody
        raise
    _GROUPS.clear()
    dist.destroy_process_group()


def _fresh(store: Any) -> Any:
    """The place where processes find each other's addresses, without those of an earlier attempt.

    Torchrun keeps one store for all its attempts, and who reads the address of a process that is gone waits for it
    until the timeout. Several machines count attempts each for itself: there torchrun is to make new stores
    (``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1``, docs/scale.md).
    """
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        return store
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return _torch.PrefixStore(f"attempt {attempt}", store)


def parallelize(
    module: nn.Module,
    plan: Plan,
    ranks: Ranks,
    *,
    device: torch.device,
    blocks: Iterable[nn.Module],
    others: Iterable[nn.Module] = (),
) -> nn.Module:
    """`module`, on `device`, as it is to be called for training by all processes; its gradients are means over them.

    With fsdp `module`, and each of `blocks` within it, is cut up in place, and so are `others`, modules of the same
    shape that are not called in training, such as moving averages; their parameters become `DTensor`. Otherwise
    parameters stay as they are. Build the optimiser afterwards.
    """
    if ranks.world == 1:
        return module
    if plan.sync_norm and device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
    if plan.strategy == "fsdp":
        _shard(module, blocks, plan, device, ranks)
        for other in others:
            _shard(other, (), plan, device, ranks)
        return module
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise ConfigError("nothing in this model learns: it has no parameter that takes a gradient")
    places = [device.index or 0] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=places)


@contextlib.contextmanager
def exchanging(module: nn.Module, enabled: bool) -> Iterator[None]:
    """Backward passes within exchange gradients with the other processes, or add them up here until one does."""
    if is_sharded(module):
        sharded = cast("FSDPModule", module)
        sharded.set_requires_gradient_sync(enabled)
        sharded.set_is_last_backward(enabled)
        yield
    elif isinstance(module, DistributedDataParallel) and not enabled:
        with module.no_sync():
            yield
    else:
        yield


def whole(tensor: Tensor) -> Tensor:
    """A tensor in one piece, put together from all processes if it is cut up; all of them must ask."""
    return cast("DTensor", tensor).full_tensor() if is_cut_up(tensor) else tensor


def is_sharded(module: nn.Module) -> bool:
    """Whether parameters are cut up over processes."""
    return any(is_cut_up(parameter) for parameter in module.parameters())


def is_cut_up(tensor: Tensor) -> bool:
    """Whether this is a `DTensor`. Where nobody has loaded that class, which takes half a second, there are none."""
    loaded = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def laid_like(full: Tensor, like: Tensor) -> Tensor:
    """`full`, which every process has, on the device of `like` and cut up as that is."""
    if not is_cut_up(like):
        return full.to(like.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    like = cast(DTensor, like)
    placed = full.to(like.to_local().device)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)


def _shard(module: nn.Module, blocks: Iterable[nn.Module], plan: Plan, device: torch.device, ranks: Ranks) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    how: dict[str, Any] = {
        "mesh": init_device_mesh(device.type, (ranks.world,)),
        "reshard_after_forward": plan.regather,
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if plan.gather == "bf16" else None,
            reduce_dtype=torch.float32 if plan.gather == "bf16" else None,
        ),
        "offload_policy": CPUOffloadPolicy() if plan.offload and device.type == "cuda" else OffloadPolicy(),
    }
    for block in blocks:
        fully_shard(block, **how)
    fully_shard(module, **how)
