"""Which of a file's state dicts are its weights. Runs in a process of its own, under limits, and answers in JSON."""

import contextlib
import json
import sys
from typing import Any

from .archives import Archive, open_archive
from .machine import NAME_LENGTH, Inert, Refused
from .tensors import Strided

MEMORY_BYTES = 1 << 30
CPU_SECONDS = 10
PLAIN = ("state_dict", "model", "model_state", "model_state_dict", "module")
AVERAGED = ("model_ema", "state_dict_ema", "ema")
DEPTH = 3  # of such entries within each other
CLASSES = 1 << 15  # that a file may name; ImageNet-22k has 21,841
UNREADABLE = ("torch.", "torchao.", "__torch__")


def main() -> None:
    """Answer for the file on standard input: where the tensors lie, or why it is refused."""
    prefer_ema = sys.argv[-1] == "ema"
    _limit()
    try:
        answer = read(0, prefer_ema=prefer_ema)
    except Refused as refusal:
        answer = {"refused": str(refusal)}
    except MemoryError:
        answer = {"refused": f"takes more than {MEMORY_BYTES >> 20} MiB to unpickle, which no model's weights do"}
    json.dump(answer, sys.stdout)


def read(descriptor: int, *, prefer_ema: bool) -> dict[str, Any]:
    """Where the tensors of an open file's weights lie in it, ready for JSON.

    Returns:
        ``tensors``: name, storage, type, offset, shape, strides of each, lengths in numbers; ``slabs``: start, bytes
        and checksum of each storage; ``meta``: classes and palette, where OpenMMLab's programs left them;
        ``notes``: what was decided.

    Raises:
        Refused: no file of torch.save, damaged, or without a state dict.
    """
    archive = open_archive(descriptor)
    meta, odd = _meta(archive.tree)
    state, notes = _pick(archive, prefer_ema, {"meta"} if meta else set())
    notes += [f"took {' and '.join(meta)} of 'meta'"] if meta else []
    notes += [f"ignored: {name} of 'meta', which are not plain" for name in odd]
    tensors = {name: value for name, value in state.items() if isinstance(value, Strided) and type(name) is str}
    _check(state, tensors, archive)
    others = [key for key in state if key not in tensors]
    notes += [f"no tensors, ignored: {_listed(others)}"] if others else []
    notes += [f"not imported: {_listed(sorted(archive.inert))}"] if archive.inert else []
    slabs = {tensor.key: archive.slabs[tensor.key] for tensor in tensors.values()}
    return {
        "tensors": [[name, t.key, t.dtype, t.offset, t.shape, t.stride] for name, t in tensors.items()],
        "slabs": {key: [slab.start, slab.size, slab.checksum] for key, slab in slabs.items()},
        "meta": meta,
        "notes": notes,
    }


def _meta(tree: Any) -> tuple[dict[str, list[Any]], list[str]]:
    """Names and colours of classes that lie beside a state dict, and which of both are there and cannot be used."""
    meta = tree.get("meta") if isinstance(tree, dict) else None
    if not isinstance(meta, dict):
        return {}, []
    about = meta.get("dataset_meta")  # since mmengine; before, they were in capitals
    about = about if isinstance(about, dict) else meta
    found: dict[str, list[Any]] = {}
    odd = []
    for name in ("classes", "palette"):
        value: Any = about.get(name, about.get(name.upper()))
        if _is_plain(value, name):
            found[name] = list(value)
        elif value is not None:
            odd.append(name)
    return found, odd


def _is_plain(value: Any, name: str) -> bool:
    """Whether these are names of classes, or triples of 0..255."""
    if not isinstance(value, list | tuple) or not 0 < len(value) <= CLASSES:
        return False
    if name == "classes":
        return all(type(item) is str and item.isprintable() and 0 < len(item) <= NAME_LENGTH for item in value)
    triples = all(isinstance(item, list | tuple) and len(item) == 3 for item in value)
    return triples and all(type(part) is int and 0 <= part <= 255 for item in value for part in item)


def _pick(archive: Archive, prefer_ema: bool, used: set[str]) -> tuple[dict[Any, Any], list[str]]:
    """The state dict among the things in a file, and what was decided; what is `used` otherwise is not ignored."""
    tree, notes = archive.tree, []
    order = (*AVERAGED, *PLAIN) if prefer_ema else (*PLAIN, *AVERAGED)
    taken = []
    for _ in range(DEPTH):
        found = [name for name in order if isinstance(tree, dict) and _has_weights(tree.get(name), DEPTH, set())]
        if not found:
            break
        notes.append(f"took {found[0]!r}" + (f", not {_listed(found[1:])}" if found[1:] else ""))
        others = [key for key in tree if key not in found and key not in used]
        notes += [f"ignored: {_listed(others)}"] if others else []
        taken.append(found[0])
        tree = tree[found[0]]
    if prefer_ema and not {*taken} & {*AVERAGED}:
        notes.append("there are no averaged weights in it")
    if not isinstance(tree, dict) or not any(isinstance(value, Strided) for value in tree.values()):
        raise Refused(_no_weights(tree))
    return tree, notes


def _has_weights(thing: Any, depth: int, seen: set[int]) -> bool:
    """Whether this is a state dict or holds one under the usual names; nothing is searched twice."""
    if not isinstance(thing, dict) or depth == 0 or id(thing) in seen:
        return False
    seen.add(id(thing))
    if any(isinstance(value, Strided) for value in thing.values()):
        return True
    return any(_has_weights(thing.get(name), depth - 1, seen) for name in (*PLAIN, *AVERAGED))


def _no_weights(tree: Any) -> str:
    remedy = "save the model's state_dict() with torch.save"
    if isinstance(tree, Inert):
        return f"holds a whole object ({tree.name}), which is not made for safety's sake; {remedy}"
    if not isinstance(tree, dict):
        return f"holds a {type(tree).__name__.lower()}, not a dict of tensors; {remedy}"
    if "param_groups" in tree or ("optimizer" in tree and not {*tree} & {*PLAIN, *AVERAGED}):
        return f"holds an optimiser's state and no weights; {remedy}"
    made = _quantised(tree.values())
    return made or f"holds no weights ({_listed(list(tree)) or 'nothing'}); {remedy}"


def _check(state: dict[Any, Any], tensors: dict[str, Strided], archive: Archive) -> None:
    """All tensors can be read, and claim no more bytes than there are (one that is there twice counts once)."""
    problem = _quantised(state.values())
    if problem:
        raise Refused(problem)
    for name in tensors:
        if not name or not name.isprintable() or len(name) > NAME_LENGTH:
            raise Refused("is damaged: a tensor has a name that cannot be printed")
    claimed = sum(tensor.size for tensor in {*tensors.values()})
    if claimed > archive.size:
        raise Refused(f"is damaged: its tensors claim {claimed:,} bytes, and it has {archive.size:,}")


def _quantised(values: Any) -> str | None:
    """What to say of tensors that were saved in a form that is no array of plain numbers."""
    odd = sorted({value.name for value in values if isinstance(value, Inert) and value.name.startswith(UNREADABLE)})
    odd = [name for name in odd if name not in ("torch.device", "torch.dtype")]
    if not odd:
        return None
    return f"holds tensors that are quantised, sparse or of unusual types ({_listed(odd)}); save them as float32"


def _listed(names: list[Any]) -> str:
    """Some names, in one line whatever they are."""
    some = [name if type(name) is str and name.isprintable() else ascii(type(name).__name__) for name in names[:8]]
    return ", ".join(name[:60] for name in some) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _limit() -> None:
    """Memory, time, no files and no processes; where the system knows no limits, the steps are counted all the same."""
    with contextlib.suppress(ImportError):
        import resource

        for kind, most in {
            resource.RLIMIT_AS: MEMORY_BYTES,
            resource.RLIMIT_CPU: CPU_SECONDS,
            resource.RLIMIT_FSIZE: 0,
            resource.RLIMIT_CORE: 0,
        }.items():
            with contextlib.suppress(ValueError, OSError):  # a system may refuse one
                resource.setrlimit(kind, (most, most))
