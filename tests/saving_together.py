"""What the processes of a `Company` are asked to do with a run's folder: save in one layout, go on in another."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from states import State, tiny_state
from swindow.distributed import ALONE, Ranks, joined, whole
from swindow.errors import CheckpointError, SwindowError
from swindow.run_folder import RunFolder
from swindow.settings import TrainConfig

FREE = frozenset({"out"})


def drawn_state(step: int) -> State:
    """A tiny state whose values are all different, with sizes that do not divide by two."""
    state = tiny_state(step)
    state.others |= {
        "optimizer/odd/exp_avg": torch.zeros(5, 3),
        "optimizer/one row/exp_avg": torch.zeros(1, 4),
        "optimizer/half/exp_avg": torch.zeros(3, 2, dtype=torch.bfloat16),
    }
    draw = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in state.tensors().values():
            tensor.copy_(torch.randint(-(2**7), 2**7, tensor.shape, generator=draw).to(tensor.dtype))
    return state


class CutUp:
    """A state whose moments are cut up over two processes by rows, as FSDP2 does, and whose weights are too."""

    def __init__(self, state: State) -> None:
        self.state, self.usable = state, state.usable
        mesh = init_device_mesh("cpu", (2,))
        self.held = {}
        for name, tensor in state.tensors().items():
            rows = tensor.ndim > 0 and "empty" not in name
            self.held[name] = (
                distribute_tensor(tensor.detach(), mesh, [Shard(0) if "replica" not in name else Replicate()])
                if rows
                else tensor
            )

    def tensors(self) -> dict[str, Tensor]:
        return self.held

    def facts(self) -> dict[str, Any]:
        return self.state.facts()


def laid_out(state: State, layout: str) -> Any:
    return CutUp(state) if layout == "fsdp" else state


def in_company(work: Any, layout: str) -> Any:
    """`work` with these processes' ranks; alone where the layout is that."""
    if layout == "alone":
        return work(ALONE)
    with joined() as ranks:
        return work(ranks)


def saved_in(folder: str, layout: str, step: int, *, behind: bool = False) -> list[str]:
    """Save a state in a layout; the names of its files."""

    def work(ranks: Ranks) -> list[str]:
        run = RunFolder(folder, behind=behind, ranks=ranks)
        run.open(TrainConfig(out=folder), resume=True, free=FREE)
        with run:
            run.save(laid_out(drawn_state(step), layout))
            run.finish_saving()
        return sorted(path.name for path in (Path(folder) / "steps" / f"step-{step:08d}").iterdir())

    return in_company(work, layout)


def filled_in(folder: str, layout: str) -> int:
    """Fill a state of zeros from the newest saved one, and compare every bit with what was saved; its step."""

    def work(ranks: Ranks) -> int:
        run = RunFolder(folder, ranks=ranks)
        saved = run.open(TrainConfig(out=folder), resume=True, free=FREE)
        with run:
            assert saved is not None
            right = drawn_state(saved.facts["step"]).tensors()
            blank = laid_out(drawn_state(0), layout)
            saved.fill(blank.tensors())
            for name, tensor in blank.tensors().items():
                assert isinstance(tensor, DTensor) is (layout == "fsdp" and tensor.ndim > 0 and "empty" not in name)
                assert torch.equal(whole(tensor), right[name]), name
        return saved.facts["step"]

    return in_company(work, layout)


def fails(folder: str, wrong_rank: int, kind: str, behind: bool) -> str:
    """Save a state that cannot be saved by one process alone; what all of them hear, after which they save another."""

    def work(ranks: Ranks) -> str:
        run = RunFolder(folder, behind=behind, ranks=ranks)
        run.open(TrainConfig(out=folder), resume=True, free=FREE)
        with run:
            bad = laid_out(drawn_state(7), "fsdp")
            if ranks.rank == wrong_rank:
                spoil(bad, kind)
            try:
                run.save(bad)
                run.finish_saving()
            except CheckpointError as error:
                said = str(error)
            finally:
                mend()
            run.save(laid_out(drawn_state(8), "fsdp"))
            run.finish_saving()
        return said

    return in_company(work, "fsdp")


def spoil(state: Any, kind: str) -> None:
    """Make this process's part of a save fail."""
    if kind == "nan":
        state.held["optimizer/odd/exp_avg"].to_local()[0, 0] = float("nan")
        return
    from swindow.run_folder import shards

    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    shards.write_new = no_space


def mend() -> None:
    from swindow.checkpoints import files
    from swindow.run_folder import shards

    shards.write_new = files.write_new


def refused(folder: str) -> str:
    """Open a folder that another process holds; what every process hears."""

    def work(ranks: Ranks) -> str:
        try:
            RunFolder(folder, ranks=ranks).open(TrainConfig(), resume=True, free=FREE)
        except SwindowError as error:
            return f"{type(error).__name__}: {error}"
        return "opened"

    return in_company(work, "ddp")


def only_the_first_writes(folder: str) -> list[bool]:
    """Use all that writes files in every process; what each of them has done itself."""

    def work(ranks: Ranks) -> list[bool]:
        run = RunFolder(folder, ranks=ranks)
        run.open(TrainConfig(), resume=False, free=FREE)
        with run:
            run.record({"kind": "train", "step": 1})
            run.write_json("result.json", {"rank": ranks.rank})
            run.forget_after(1, judged=1)
            run.save_best(drawn_state(1).usable, {"step": 1})
            run.save(drawn_state(1))
            held = run.lock.held
            ranks.wait()
        return [held]

    return in_company(work, "ddp")
