"""Any file's or folder's tensors, and what lies beside them; nothing in a file is ever executed."""

import dataclasses
import io
import json
import re
import subprocess
import sys
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from swindow.errors import CheckpointError

PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")
FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
OTHERS = {
    ".h5": "Keras",
    ".keras": "Keras",
    ".msgpack": "Flax",
    ".onnx": "ONNX",
    ".pb": "TensorFlow",
    ".tflite": "TensorFlow Lite",
    ".gguf": "llama.cpp",
    ".npz": "NumPy",
    ".npy": "NumPy",
    ".pkl": "plain pickle",
}
SIGNS = (  # in lower case
    ((b"version https://git-lfs",), "it is a pointer of Git LFS, not the weights; run `git lfs pull`"),
    ((b"<!doctype", b"<html", b"<?xml"), "it is a web page, perhaps of a failed download; fetch the file itself"),
    ((b"{", b"["), "it is JSON text; give the file of the weights"),
    ((b"\x1f\x8b", b"7z\xbc\xaf", b"bzh", b"\xfd7zxz", b"\x28\xb5\x2f\xfd"), "it is packed; unpack it first"),
    ((b"\x89hdf",), "it is HDF5, as Keras and TensorFlow write; save it from PyTorch"),
)
QUANTISED = (".qweight", ".qzeros", ".SCB", ".weight_scale", ".weight_scale_inv", ".quant_state")
PREFIXES = ("module.", "_orig_mod.")
COUNTER = "n_averaged"  # torch's AveragedModel keeps it beside the model that it wraps
JSON_BYTES = 32 << 20
MOST_SHARDS = 256
SHARD = re.compile(r"[\w-][\w .-]*\.(safetensors|bin|pth|pt)", re.ASCII)
SECONDS = 20  # of reading a pickle; the child's own limit is in the processor's time
# The child imports the folder `pickles` by itself: through its package it would import torch.
CHILD = "import sys; sys.path.append(sys.argv[1]); from pickles.reading import main; main()"
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Container:
    """What was found at a path."""

    path: Path
    """The weights, or the index of a sharded set; errors name it."""
    tensors: dict[str, Tensor]
    """On the CPU, contiguous, all finite; under the names of the file, less a prefix that all of them had."""
    metadata: dict[str, str] = dataclasses.field(default_factory=dict)
    """That of a safetensors file."""
    config: dict[str, Any] | None = None
    """The ``config.json`` beside the weights."""
    preprocessor: dict[str, Any] | None = None
    """The ``preprocessor_config.json`` beside the weights."""
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of a pickled file: ``classes`` and ``palette`` of the data, as far as OpenMMLab's programs wrote them plainly."""
    notes: tuple[str, ...] = ()
    """What was decided and what was left out."""


def read_container(path: str | Path, *, prefer_ema: bool = False) -> Container:
    """Read ``.safetensors``, files of ``torch.save`` of any age, sharded sets by their index, or a folder of these.

    A pickle is followed in a process of its own, under limits of memory and time, by a reader that can make tensors
    and plain containers only; whatever else it asks for becomes inert.

    Args:
        prefer_ema: of a file that holds averaged weights beside the others, take those.

    Raises:
        CheckpointError: nothing there, damaged, not finite, or of a kind that is not read; one line that says which.
    """
    path = Path(path)
    try:
        file = _weights_in(path) if path.is_dir() else path
        if not file.is_file():
            raise CheckpointError(f"{file}: there is no such file or folder; give weights, or a folder with them")
        found = _read(file, prefer_ema)
        config, preprocessor = (_beside(file, name) for name in ("config.json", "preprocessor_config.json"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    _check(found.tensors, file)
    tensors, notes = _without_prefix(found.tensors)
    return dataclasses.replace(
        found, tensors=tensors, config=config, preprocessor=preprocessor, notes=(*found.notes, *notes)
    )


def _weights_in(folder: Path) -> Path:
    """The weights in a folder: safetensors first, by their usual names, else the only ones there are."""
    for name in FOLDER:
        if (folder / name).is_file():
            return folder / name
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    for endings in ((".safetensors.index.json",), (".safetensors",), PICKLED):
        found = [name for name in names if name.endswith(endings)]
        if len(found) == 1:
            return folder / found[0]
        if found:
            raise CheckpointError(f"{folder}: several weights in it ({', '.join(found[:6])}); give one of them")
    others = {OTHERS[Path(name).suffix] for name in names if Path(name).suffix in OTHERS}
    hint = f"; what is there is for {' and '.join(sorted(others))}: save it from PyTorch" if others else ""
    raise CheckpointError(
        f"{folder}: no {FOLDER[0]} in it, nor {', '.join(FOLDER[1:])} or another file of weights{hint}"
    )


def _read(file: Path, prefer_ema: bool) -> Container:
    """The tensors of one file or sharded set."""
    if file.name.endswith(".index.json"):
        return _sharded(file, prefer_ema)
    with file.open("rb") as stream:
        start = stream.read(1024)
        tagged = start[5:8] == b"\0\0\0" and start[8:9] == b"{"  # the header's length, then the header: safetensors
        if not tagged:
            _diagnose(file, start)
        if tagged or file.suffix == ".safetensors":
            return _safetensors(file)
        return _pickled(file, stream, prefer_ema)


def _diagnose(file: Path, start: bytes) -> None:
    """Say what a file is that is often found in the place of weights."""
    kind = "safetensors" if file.suffix == ".safetensors" else "torch"
    text = start.lstrip().lower()
    says = next((says for signs, says in SIGNS if text.startswith(signs)), None)
    if not start:
        says = "it is empty; fetch it again"
    elif start[257:262] == b"ustar":
        says = "it is packed; unpack it first"
    elif file.suffix in OTHERS:
        says = f"{file.suffix} is for {OTHERS[file.suffix]}; save it from PyTorch as .safetensors or .pth"
    elif kind == "safetensors" and start.startswith((b"PK", b"\x80")):
        says = "it was written by torch.save; rename it to .pth"
    if says:
        raise CheckpointError(f"{file}: not a readable {kind} file: {says}")


def _safetensors(file: Path) -> Container:
    try:
        with safetensors.safe_open(file, framework="pt") as reader:
            metadata = reader.metadata() or {}
            tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, safetensors.SafetensorError, KeyError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{file}: not a readable safetensors file ({reason}); fetch it again") from error
    return Container(path=file, tensors=tensors, metadata=metadata)


def _sharded(index: Path, prefer_ema: bool) -> Container:
    """A set of files in one folder, and an index that says which tensor is in which."""
    said = _json(index)
    places = said.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{index}: no weight_map of tensors to files in it; give the index of a sharded set")
    shards = sorted({*places.values()})
    for name in shards:
        if not SHARD.fullmatch(name):
            raise CheckpointError(f"{index}: names {name!a} as a shard; shards lie beside the index, by plain name")
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing or len(shards) > MOST_SHARDS:
        some = f"{', '.join(missing[:3])} missing" if missing else f"{MOST_SHARDS} are allowed"
        raise CheckpointError(f"{index}: of its {len(shards)} shards, {some}; fetch the whole set")
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    notes = [f"{len(shards)} shards"]
    for name in shards:
        part = _read(index.parent / name, prefer_ema)
        wanted = [key for key, place in places.items() if place == name]
        absent = [key for key in wanted if key not in part.tensors]
        if absent:
            raise CheckpointError(
                f"{index.parent / name}: {absent[0]!a} is not in it, as {index.name} says; fetch both again"
            )
        tensors |= {key: part.tensors[key] for key in wanted}
        metadata |= part.metadata
        notes += [f"{name}: {note}" for note in part.notes]
    return Container(path=index, tensors=tensors, metadata=metadata, notes=tuple(notes))


def _pickled(file: Path, stream: io.BufferedReader, prefer_ema: bool) -> Container:
    answer = _ask(file, prefer_ema)
    views: dict[str, list[tuple[str, list[Any]]]] = {}
    for name, key, *view in answer["tensors"]:
        views.setdefault(key, []).append((name, view))
    tensors: dict[str, Tensor] = {}
    for key, (start, size, checksum) in answer["slabs"].items():
        slab = torch.empty(size, dtype=torch.uint8)
        content: Any = slab.numpy()
        stream.seek(start)
        if stream.readinto(content) != size or (checksum and zlib.crc32(content) != checksum):
            raise CheckpointError(f"{file}: is damaged: a storage differs from its checksum; fetch it again")
        tensors |= _tensors_of(slab, views[key])
    tensors = {name: tensors[name] for name, *_ in answer["tensors"]}  # in the file's order, not by storage
    return Container(path=file, tensors=tensors, meta=answer["meta"], notes=tuple(answer["notes"]))


def _tensors_of(slab: Tensor, views: Iterable[tuple[str, list[Any]]]) -> dict[str, Tensor]:
    """Tensors over one storage: names for the same view share it, others get memory of their own."""
    made: dict[str, Tensor] = {}
    named = {}
    for name, view in views:
        if (same := str(view)) not in made:
            made[same] = _tensor_of(slab, *view)
        named[name] = made[same]
    return named


def _tensor_of(slab: Tensor, dtype: str, offset: int, shape: list[int], stride: list[int]) -> Tensor:
    numbers = len(slab) // DTYPES[dtype].itemsize
    whole = slab[: numbers * DTYPES[dtype].itemsize].view(DTYPES[dtype])
    if dtype == "bool":
        whole = slab != 0  # other bytes than 0 and 1 are no bools
    view = whole.as_strided(shape, stride, offset)
    # Not `contiguous`, which would keep all of a storage for a slice of it.
    return (
        view if view.numel() == numbers and view.is_contiguous() else view.clone(memory_format=torch.contiguous_format)
    )


def _ask(file: Path, prefer_ema: bool) -> dict[str, Any]:
    """What the child finds in a file of torch.save."""
    command = [sys.executable, "-I", "-S", "-c", CHILD, str(Path(__file__).parent), "ema" if prefer_ema else "plain"]
    try:
        with file.open("rb") as own:  # a process that shares one moves the place that the other reads at
            child = subprocess.run(command, stdin=own, capture_output=True, timeout=SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(f"{file}: took more than {SECONDS} s to read, which no model's weights do") from error
    try:
        answer: dict[str, Any] = json.loads(child.stdout) if child.returncode == 0 else {}
    except ValueError:
        answer = {}
    if not answer:
        last = ascii(child.stderr.decode(errors="replace").strip().rpartition("\n")[2][:100])
        raise CheckpointError(
            f"{file}: the process that follows its pickle ended with status {child.returncode} {last}, "
            "perhaps at its limits of memory or time; fetch the file again"
        )
    if "refused" in answer:
        raise CheckpointError(f"{file}: {answer['refused']}")
    return answer


def _without_prefix(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Names without the prefix that a wrapper of the model gave to all of them."""
    notes = []
    while found := [prefix for prefix in PREFIXES if _all_have(prefix, tensors)]:
        tensors = {name.removeprefix(found[0]): tensor for name, tensor in tensors.items() if name != COUNTER}
        notes.append(f"removed the prefix {found[0]}")
    return tensors, notes


def _all_have(prefix: str, tensors: Mapping[str, Tensor]) -> bool:
    names = [name for name in tensors if name != COUNTER]
    return bool(names) and all(name.startswith(prefix) and name != prefix for name in names)


def _check(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Nothing quantised, nothing that is not finite."""
    if not tensors:
        raise CheckpointError(f"{file}: there are no tensors in it; give a file of weights")
    for name, tensor in tensors.items():
        if not name.isprintable():
            raise CheckpointError(f"{file}: is damaged: a tensor has a name that cannot be printed; fetch it again")
        if name.endswith(QUANTISED) or tensor.dtype not in DTYPES.values():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{file}: {name} is quantised or of an unusual type ({kind}); give the weights in floating point"
            )
    bad = {name: count for name, tensor in tensors.items() if (count := _not_finite(tensor))}
    if bad:
        name, count = next(iter(bad.items()))
        more = f", and {len(bad) - 1} other tensors do" if len(bad) > 1 else ""
        raise CheckpointError(f"{file}: {name} holds {count:,} values that are not finite{more}; the file is unusable")


def _not_finite(tensor: Tensor) -> int:
    # A sum is finite only if all numbers are, and takes a tenth of the time; one that overflows is looked at closely.
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum())):
        return 0
    return int((~torch.isfinite(tensor)).sum())


def _beside(file: Path, name: str) -> dict[str, Any] | None:
    path = file.parent / name
    return _json(path) if path.is_file() else None


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > JSON_BYTES:
        raise CheckpointError(f"{path}: has more than the {JSON_BYTES:,} bytes that are allowed; fetch it again")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not readable as JSON ({type(error).__name__}); fetch it again or remove it"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds no JSON object; fetch it again or remove it")
    return content
