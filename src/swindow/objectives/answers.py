"""A teacher's answers on disk: asked once, read by every run whose images are the same (TinyViT; Wu et al. 2022).

An answer goes by (epoch, index), since augmentation is a function of the seed and those two. A folder has one subfolder
for each teacher and each stream of images, named by a hash of all that answers depend on. In it, each process appends
to a file of its own per epoch; an answer is a record of fixed length with a checksum, so that whatever is on disk after
a crash can be read, and what is missing or damaged is asked again.
"""

import hashlib
import json
import math
import uuid
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from swindow.checkpoints.files import write_atomic
from swindow.errors import ConfigError, DataError

FACTS = "facts.json"


class DamagedAnswers(UserWarning):
    """Kept answers that are not as they were written, and are asked again."""


class KeptAnswers:
    """The answers of one teacher about one stream of images: logits of classes, as log-probabilities in fp16.

    With `top`, of each answer only the `top` largest are kept, and the mean of the others, as of TinyViT's (section 3):
    those are then taken to be equal. What `answers` gives is always what was written, also when it was asked just now.
    """

    def __init__(self, folder: str | Path, facts: Mapping[str, Any], *, classes: int, top: int = 0) -> None:
        """`facts`, plain values, are all that the answers depend on.

        Raises:
            ConfigError: `top` is not below the number of classes.
            DataError: the folder cannot be written.
        """
        if not 0 <= top < classes:
            raise ConfigError(
                f"distillation.cache_top is {top} and there are {classes} classes; give fewer, or 0 to keep all"
            )
        self.classes, self.top = classes, top
        self._record = _record(classes, top)
        text = json.dumps({**facts, "classes": classes, "top": top, "version": 1}, indent=1, sort_keys=True)
        self.folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / FACTS).exists():
                write_atomic(self.folder / FACTS, text + "\n")
        except OSError as error:
            raise DataError(f"{folder}: cannot keep a teacher's answers here ({error.strerror or error})") from error
        self._own = uuid.uuid4().hex[:12]
        self._epoch = -1
        self._files: list[_Answers] = []

    def answers(self, epoch: int, indices: np.ndarray, ask: Callable[[], Float[Tensor, "B K"]]) -> Float[Tensor, "B K"]:
        """Log-probabilities for each of `indices` in an epoch, fp32 on the CPU.

        Where one of them is missing, `ask` is asked about the whole batch: its answers then do not depend on which
        ones were there.
        """
        if epoch != self._epoch:
            files = sorted(self.folder.glob(f"epoch-{epoch:06d}-*.answers"))
            self._files, self._epoch = [_Answers(file, self._record) for file in files], epoch
        records = np.zeros(len(indices), self._record)
        there = np.zeros(len(indices), bool)
        for file in self._files:
            file.read(indices, records, there)
        if not there.all():
            records = self._packed(epoch, indices, ask())
            self._append(records[~there & np.isfinite(records["values"]).all(1)])
        return self._unpacked(records)

    def _packed(self, epoch: int, indices: np.ndarray, logits: Tensor) -> np.ndarray:
        records = np.zeros(len(indices), self._record)
        shares = logits.detach().double().log_softmax(1).cpu()
        records["epoch"], records["index"] = epoch, indices
        if self.top:
            shares, places = shares.sort(dim=1, descending=True, stable=True)
            rest = shares[:, self.top :].logsumexp(1, keepdim=True) - math.log(self.classes - self.top)
            shares = torch.cat([shares[:, : self.top], rest], 1)
            records["places"] = places[:, : self.top].numpy()
        records["values"] = shares.clamp_min(-65_504).half().numpy()  # fp16's lowest
        records["check"] = [_check(record) for record in records]
        return records

    def _unpacked(self, records: np.ndarray) -> Tensor:
        values = torch.from_numpy(records["values"].astype(np.float32))
        if not self.top:
            return values
        places = torch.from_numpy(records["places"].astype(np.int64))
        return values[:, -1:].repeat(1, self.classes).scatter_(1, places, values[:, :-1])

    def _append(self, records: np.ndarray) -> None:
        path = self.folder / f"epoch-{self._epoch:06d}-{self._own}.answers"
        try:
            with path.open("ab") as file:
                file.write(records.tobytes())
        except OSError as error:
            raise DataError(f"{path}: cannot keep a teacher's answers ({error.strerror or error})") from error


class _Answers:
    """One file of records, mapped into memory and looked up by index."""

    def __init__(self, path: Path, record: np.dtype) -> None:
        self.path, self.told = path, False
        count = path.stat().st_size // record.itemsize  # a record that was cut short is none
        self.records: np.ndarray = np.memmap(path, record, "r", shape=(count,)) if count else np.zeros(0, record)
        self.order = np.argsort(self.records["index"], kind="stable")
        self.sorted = self.records["index"][self.order]

    def read(self, indices: np.ndarray, records: np.ndarray, there: np.ndarray) -> None:
        """Fill in those of `records` that are still missing and intact here, and say so in `there`."""
        places = np.searchsorted(self.sorted, indices)
        for row, place in enumerate(places.tolist()):
            if there[row] or place == len(self.sorted) or self.sorted[place] != indices[row]:
                continue
            record = self.records[self.order[place]]
            if _check(record) == record["check"]:
                records[row], there[row] = record, True
            elif not self.told:
                self.told = True
                warnings.warn(f"{self.path}: damaged; what is, is asked again", DamagedAnswers, stacklevel=2)


def _record(classes: int, top: int) -> np.dtype:
    """Checksum, epoch and index of an answer, and the answer: all log-probabilities, or the largest and the rest's."""
    fields: list[Any] = [("check", "<u4"), ("epoch", "<i4"), ("index", "<i8")]
    if not top:
        return np.dtype([*fields, ("values", "<f2", (classes,))])
    return np.dtype([*fields, ("values", "<f2", (top + 1,)), ("places", "<u4", (top,))])


def _check(record: Any) -> int:
    """CRC-32 of everything in a record but itself."""
    return zlib.crc32(record.tobytes()[4:])
