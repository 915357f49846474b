"""A safetensors file, tensor by tensor: the same bytes as safetensors' own writer makes, without a second copy of all.

The format is eight bytes of header length, a JSON header, and the values one after the other
(https://github.com/huggingface/safetensors#format).
"""

import json
import struct
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from swindow.errors import CheckpointError

CODES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of what tensors are made of, in the order in which they lie in a file: wide ones first, so that all of them are
aligned."""


def pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """A safetensors file's bytes, in order; a tensor is brought to the processor's memory when it is its turn.

    Raises:
        CheckpointError: a type of values that we have no use for, such as complex numbers.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in CODES:
            raise CheckpointError(f"{name} is {tensor.dtype}; a checkpoint holds {', '.join(CODES.values())}")
    places = {dtype: place for place, dtype in enumerate(CODES)}
    names = sorted(tensors, key=lambda name: (places[tensors[name].dtype], name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in names:
        yield _bytes_of(tensors[name])


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all values."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def refuse_unfinite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse values that are not finite.

    Raises:
        CheckpointError: it names the first tensor, and how many others.
    """
    wrong = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if wrong:
        more = f" and {len(wrong) - 1} more" if wrong[1:] else ""
        raise CheckpointError(
            f"{what} is not saved: {wrong[0]}{more} holds values that are not finite; what was saved before stays"
        )


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    lowest, highest = tensor.detach().aminmax()  # NaN is both; one pass, and no copy as isfinite makes
    return bool(torch.isfinite(lowest) & torch.isfinite(highest))


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
