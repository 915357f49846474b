"""Pieces of a model that is cut up, written by torch.distributed.checkpoint: each process its own, one file each.

Torch plans who writes what, and that nothing is written twice. Its own file format pickles that plan, so what we write
is the form of its `HuggingFaceStorageWriter`: safetensors with offsets in their metadata, through our functions.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from swindow.checkpoints.files import naming, write_new
from swindow.checkpoints.streaming import pieces, refuse_unfinite
from swindow.distributed import Ranks
from swindow.errors import CheckpointError
from swindow.run_folder.saved import first_cause

OFFSETS = "DCP_SHARDING_INFO"
"""Where torch's reader looks for the places of pieces."""


def write_shards(
    folder: Path, pieces_here: dict[str, Tensor], layout: dict[str, Tensor], ranks: Ranks, group: Any
) -> dict[str, dict[str, Any]]:
    """Write this process's pieces of `layout` into `folder`; in the first process, the facts of all files by name.

    All processes of `group` must call it, and all return, or all raise.

    Raises:
        CheckpointError: a process could not write; the message is that one's.
    """
    writer = _Writer(folder, ranks)
    try:
        save(layout, storage_writer=writer, planner=_Planner(pieces_here), process_group=group)
    except CheckpointException as error:
        cause = first_cause(error)
        raise CheckpointError(str(cause) if isinstance(cause, CheckpointError) else f"{folder}: {cause}") from error
    return writer.facts


class _Planner(DefaultSavePlanner):
    """Torch's plan, made by shapes alone, with the values taken from elsewhere: from copies, where there are some."""

    def __init__(self, pieces_here: dict[str, Tensor]) -> None:
        super().__init__()
        self.pieces = pieces_here

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self.pieces[index.fqn]


class _Writer(StorageWriter):
    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        self.facts: dict[str, dict[str, Any]] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        self.facts = {}

    def set_up_storage_writer(self, is_coordinator: bool, *_: Any, **__: Any) -> None:
        return

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        tensors: dict[str, Tensor] = {}
        offsets: dict[str, dict[str, list[int]]] = {}
        for item in plan.items:
            data, name = item.tensor_data, item.index.fqn
            if data is None:
                raise CheckpointError(f"{name} is no tensor; a checkpoint holds nothing else")
            tensor = planner.resolve_data(item)
            if isinstance(tensor, Tensor) and (tensor.numel() or not data.size.numel()):
                tensors[name] = tensor
                offsets[name] = {"saved_offsets": list(data.chunk.offsets)}
        name = f"training-{self.ranks.rank + 1:05d}-of-{self.ranks.world:05d}.safetensors"
        if not self.folder.is_dir():
            raise CheckpointError(
                f"{self.folder}: process {self.ranks.rank} does not see it; the run's folder must be shared by all"
            )
        refuse_unfinite(tensors, str(self.folder))
        path = self.folder / name
        with naming(path, "cannot write this process's part"):
            fact = write_new(path, pieces(tensors, {OFFSETS: json.dumps(offsets)}))
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(MetadataIndex(name), fact["bytes"], (name, fact))])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        self.facts = dict(result.storage_data for part in results for result in part)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def talking() -> Any:
    """A group of all processes for what a thread has to say, so that it never meets what the run says meanwhile."""
    return dist.new_group(backend="gloo")
