"""The few calls of a pickle that make containers and tensors; a tensor is a note of where its numbers lie."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .machine import Act, Global, Inert, Machine, Refused, pairs

LARGEST = 2**40  # for a length, a stride or an offset
DIMENSIONS = 16

WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2} | dict.fromkeys(
    ("int8", "uint8", "bool"), 1
)
STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.storage.UntypedStorage": "uint8",
    "torch.UntypedStorage": "uint8",
}


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of `count` numbers, which starts `start` numbers behind the start of the data under `key`."""

    key: str
    dtype: str
    count: int
    start: int = 0


@dataclass(frozen=True, slots=True)
class Strided:
    """A tensor: a view of a storage; offset and strides in numbers."""

    key: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of the tensor when it stands by itself."""
        return math.prod(self.shape) * WIDTHS[self.dtype]


def new_machine() -> Machine:
    """A machine that knows how torch writes tensors."""
    return Machine(calls=CALLS, persistent=_storage)


def _storage(machine: Machine, identity: Any) -> Any:
    """The storage that a persistent id names."""
    match identity:
        case ("storage", Global(name=kind), str(key), str(), int(count), *view) if 0 <= count <= LARGEST:
            if kind not in STORAGES:
                return machine.stub(identity[1])
            dtype = STORAGES[kind]
            if machine.storages.setdefault(key, (dtype, count)) != (dtype, count):
                raise Refused("is damaged: it gives one storage two sizes or types")
            return _part(Storage(key, dtype, count), view[0] if view else None)
        case ("module", Global() as kind, *_):  # a class with its source, which torch before 1.6 kept beside it
            return kind
    raise Refused("is damaged: a storage is named in no way that torch does")


def _part(storage: Storage, view: Any) -> Storage:
    """A part of a storage, as torch before 0.4 named it: key, offset, count."""
    match view:
        case None:
            return storage
        case (str(), int(start), int(count)) if min(start, count) >= 0 and start + count <= storage.count:
            return Storage(storage.key, storage.dtype, count, start)
    raise Refused("is damaged: a view of a storage reaches beyond it")


def _strided(storage: Storage, offset: Any, shape: Any, stride: Any, dtype: str) -> Strided:
    """A tensor whose every number lies within its storage, each in a place of its own as far as counting can tell."""
    if len(shape) != len(stride) or len(shape) > DIMENSIONS:
        raise Refused("is damaged: a tensor has a shape and strides that do not belong together")
    if any(type(number) is not int or not 0 <= number <= LARGEST for number in (offset, *shape, *stride)):
        raise Refused("is damaged: the shape, strides or offset of a tensor are no sensible numbers")
    count = math.prod(shape)
    last = offset + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
    available = storage.count * WIDTHS[storage.dtype] // WIDTHS[dtype]
    if count and (last >= available or count > available):
        raise Refused(f"is damaged: a tensor reaches beyond its storage of {available:,} numbers")
    return Strided(storage.key, dtype, storage.start + offset, shape, stride)


def _tensor(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    match arguments:
        case (Storage() as storage, offset, tuple(shape), tuple(stride), *_):
            return _strided(storage, offset, shape, stride, storage.dtype)
        case (Inert() as unknown, *_):
            return unknown
    raise Refused("is damaged: a tensor is made of no storage")


def _typed_tensor(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """A tensor over a storage of bytes; its type stands beside it."""
    match arguments:
        case (Storage(start=0) as storage, offset, tuple(shape), tuple(stride), _, _, Global(name=kind), *_):
            dtype = kind.removeprefix("torch.")
            return _strided(storage, offset, shape, stride, dtype) if dtype in WIDTHS else machine.stub(arguments[6])
    raise Refused("is damaged: a tensor is made of no storage")


def _parameter(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    match arguments:
        case (Strided() | Inert() as data, *_):
            return data
    raise Refused("is damaged: a parameter is made of no tensor")


def _tensor_of_class(machine: Machine, arguments: tuple[Any, ...]) -> Any:
    """A tensor with attributes, or of a class of its own: just the tensor."""
    match arguments:
        case (Global(name=name), _, tuple(inner), *_) if name in REBUILD:
            return REBUILD[name](machine, inner)
    return machine.stub(Global("torch._tensor._rebuild_from_type_v2"))


def _mapping(machine: Machine, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """A mapping of nothing or of pairs."""
    match arguments:
        case ():
            return {}
        case (list() | tuple() as items,):
            machine.spend(len(items))
            if all(isinstance(item, list | tuple) and len(item) == 2 for item in items):
                return dict(pairs(list(itertools.chain.from_iterable(items))))
    raise Refused("is damaged: a mapping is made of something else than pairs")


def _size(machine: Machine, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    match arguments:
        case (list() | tuple() as lengths,):
            machine.spend(len(lengths))
            return tuple(lengths)
    raise Refused("is damaged: a torch.Size is made of something else than numbers")


REBUILD: Mapping[str, Act] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed_tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}
CALLS: Mapping[str, Act] = {
    **REBUILD,
    "torch._tensor._rebuild_from_type_v2": _tensor_of_class,
    "torch.Size": _size,
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda machine, arguments: {},
}
