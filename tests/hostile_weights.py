"""Files of weights that are made to do harm, or lie about themselves, written instruction by instruction.

`RUNNING` are payloads that Python's own unpickler executes; the others break a reader in other ways.
"""

import io
import json
import struct
import zipfile
from collections.abc import Callable
from typing import Any

CANARY = "canary"  # the file that a payload would make in the current folder
TOUCH = f"touch {CANARY}"
WRITE = f"open('{CANARY}','w').close()"


def text(string: str) -> bytes:
    """The instruction that stacks a string."""
    return b"X" + struct.pack("<I", len(string.encode())) + string.encode()


def number(value: int) -> bytes:
    """The instruction that stacks an integer of 64 bits."""
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def call(function: str, *arguments: bytes) -> bytes:
    """The instructions that import a function, ``module:name``, and call it."""
    module, name = function.split(":")
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def stacked(function: str, *arguments: bytes) -> bytes:
    """The same with names from the stack."""
    module, name = function.split(":")
    return text(module) + text(name) + b"\x93(" + b"".join(arguments) + b"tR"


def program(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


def entries(**values: bytes) -> bytes:
    """A dict of what some instructions leave."""
    return b"}(" + b"".join(text(name) + value for name, value in values.items()) + b"u"


SYSTEM = call("os:system", text(TOUCH))
MODULE = call("builtins:__import__", text("os"))
RUN_IT = b"(" + text(TOUCH) + b"tR"  # calls the function on the stack

RUNNING: dict[str, bytes] = {
    "os.system": SYSTEM,
    "posix.system": call("posix:system", text(TOUCH)),
    "names from the stack": stacked("os:system", text(TOUCH)),
    "dotted name": stacked("os:path.os.system", text(TOUCH)),
    "names from memory": text("os") + b"q\x00" + text("system") + b"q\x0100h\x00h\x01\x93" + RUN_IT,
    "eval": call("builtins:eval", text(WRITE)),
    "exec": call("builtins:exec", text(WRITE)),
    "exec with an import": call("builtins:exec", text(f"import os; os.system({TOUCH!r})")),
    "subprocess": call("subprocess:call", b"]" + text("touch") + b"a" + text(CANARY) + b"a"),
    "getattr": call("builtins:getattr", MODULE, text("system")) + RUN_IT,
    "attrgetter": call("operator:attrgetter", text("system")) + b"(" + MODULE + b"tR" + RUN_IT,
    "a module's dict": call("builtins:getattr", b"cos\n__dict__\n", text("get"))
    + b"("
    + text("system")
    + b"tR"
    + RUN_IT,
    "partial": call("functools:partial", b"cos\nsystem\n", text(TOUCH)) + b"(tR",
    "map": call("builtins:list", call("builtins:map", b"cos\nsystem\n", b"]" + text(TOUCH) + b"a")),
    "pkgutil": call("pkgutil:resolve_name", text("os:system")) + RUN_IT,
    "runpy": call("runpy:_run_code", text(WRITE), b"}"),
    "timeit": call("timeit:timeit", text(WRITE), text("pass"), b"cbuiltins\nint\n", b"K\x01"),
    "a path's method": stacked("pathlib:Path.touch", call("pathlib:Path", text(CANARY))),
    "open": call("io:open", text(CANARY), text("w")),
    "interpreter": stacked("code:InteractiveInterpreter.runcode", call("code:InteractiveInterpreter"), text(WRITE)),
    "INST": b"(" + text(TOUCH) + b"ios\nsystem\n",
    "OBJ": b"(cos\nsystem\n" + text(TOUCH) + b"o",
    "NEWOBJ": b"cfunctools\npartial\n(cos\nsystem\n" + text(TOUCH) + b"t\x81(tR",
    "NEWOBJ_EX": b"cfunctools\npartial\n(cos\nsystem\n" + text(TOUCH) + b"t}\x92(tR",
    "BUILD": b"cfunctools\npartial\n(cos\ngetpid\nt\x81(cos\nsystem\n(" + text(TOUCH) + b"t}Ntb(tR",
    "nested": call("builtins:tuple", b"]" + SYSTEM + b"a"),
    "as a key": b"}" + SYSTEM + b"K\x01s",
    "in a list in a list": b"](" + SYSTEM + b"la",
    "thrown away": SYSTEM + b"0N",
    "in a state": call("collections:OrderedDict") + b"}" + text("x") + SYSTEM + b"sb",
    "in a dict's pairs": call("collections:OrderedDict", b"]]" + text("k") + b"a" + SYSTEM + b"aa"),
    "after a torch.Size": call("torch:Size", b"(K\x01t") + b"0" + SYSTEM,
    "a tensor's class": call(
        "torch._tensor:_rebuild_from_type_v2", b"cos\nsystem\n", b"cbuiltins\nint\n", text(TOUCH) + b"\x85", b"}"
    ),
}


def storage(key: str = "0", *, count: int = 6, kind: str = "FloatStorage", view: bytes = b"") -> bytes:
    """A storage by its persistent id."""
    kind_of_it = f"ctorch\n{kind}\n".encode()
    return b"(" + text("storage") + kind_of_it + text(key) + text("cpu") + number(count) + view + b"tQ"


def tensor(
    *,
    shape: tuple[int, ...] = (2, 3),
    stride: tuple[int, ...] = (3, 1),
    offset: int = 0,
    made_of: bytes | None = None,
    typed: bytes = b"",
) -> bytes:
    """A tensor as torch pickles it; by default of all six numbers of storage 0."""
    function = "torch._utils:_rebuild_tensor_v3" if typed else "torch._utils:_rebuild_tensor_v2"
    place = (number(offset), numbers(*shape), numbers(*stride))
    return call(function, made_of or storage(), *place, b"\x89", call("collections:OrderedDict"), typed)


LAUGHS = text("ha") + b"2\x86" * 60
ALIKE = 2**61 - 1  # its multiples all hash to 0
CLASS = "_rebuild_from_type_v2"


def again(function: str, item: bytes) -> bytes:
    """50,000 calls with the same 50,000 things."""
    module, name = function.split(":")
    things = b"(" + item * 50_000 + b"lq\x00"
    return things + f"c{module}\n{name}\nq\x01".encode() + b"h\x01(h\x00tR" * 50_000


PICKLES: dict[str, bytes] = {
    "a call of nothing": b"R",
    "a mark that is not there": b"t",
    "a memory that is not there": b"h\x07",
    "an instruction that is not there": b"\xff",
    "a stack that is popped too far": b"N00",
    "a state for nothing": b"Nb",
    "a tuple of more than there is": b"N\x87",
    "nothing at all": b"",
    "a mark at the end": b"N(",
    "buffer out of band": b"\x97",
    "read-only buffer": b"N\x98",
    "persistent id as text": b"Pstorage\n",
    "persistent id that is a number": b"K\x01Q",
    "persistent id that is a call": SYSTEM + b"Q",
    "persistent id of a file": b"(" + text("file") + text("/etc/passwd") + b"tQ",
    "extension": b"\x82\x01(tR",
    "appends to a dict": b"}K\x01a",
    "sets items of a list": b"]K\x00K\x01s",
    "sets items of a number": b"K\x05K\x00K\x01s",
    "sets items of a tensor": tensor() + b"K\x00K\x01s",
    "appends to a tensor": tensor() + b"K\x01a",
    "imports what is no name": b"K\x01K\x02\x93",
    "a key without a value": b"}(K\x01u",
    "a dict of three things": b"(K\x01K\x02K\x03d",
    "an ordered dict of numbers": call("collections:OrderedDict", b"](K\x01K\x02e"),
    "a size that is a number": call("torch:Size", b"K\x01"),
    "text longer than the file": b"X\xff\xff\xff\x7fabc",
    "bytes of 2^63": b"\x8e" + struct.pack("<Q", 2**63 - 1),
    "frame of 2^63": b"\x95" + struct.pack("<Q", 2**63 - 1) + b"N",
    "text that is not utf-8": b"X\x02\x00\x00\x00\xff\xfe",
    "a million digits": b"I" + b"9" * 1_000_000 + b"\n",
    "a million digits, long": b"L" + b"9" * 1_000_000 + b"L\n",
    "a number of 8 MB": b"\x8b" + struct.pack("<i", 8 << 20) + b"\x7f" * (8 << 20),
    "a number of negative length": b"\x8b" + struct.pack("<i", -5),
    "memory under numbers that hash alike": b"N" + b"".join(b"p%d\n" % (k * ALIKE) for k in range(1, 50_000)),
    "keys that hash alike": b"}(" + b"".join(b"I%d\nN" % (k * ALIKE) for k in range(100_000)) + b"u",
    "lists nested 300,000 times": b"](" * 300_000 + b"l" * 300_000,
    "tuples nested 500,000 times": b")" + b"\x85" * 500_000,
    "dicts nested 50,000 times": (b"}" + text("model")) * 50_000 + b"}" + b"s" * 50_000,
    "a billion laughs": LAUGHS,
    "300,000 laughs of laughs": text("ha") + b"2\x86" * 300_000,
    "a billion laughs for a key": b"}" + LAUGHS + b"K\x01s",
    "a billion laughs in a set": b"\x8f(" + LAUGHS + b"\x90",
    "a billion laughs in a frozen set": b"(" + LAUGHS + b"\x91",
    "the same pairs again and again": again("collections:OrderedDict", b"K\x01K\x02\x86"),
    "the same size again and again": again("torch:Size", b"K\x01"),
    "four million steps": b"N0" * 2_000_000,
    "two million memories": b"N" + b"\x94" * 2_000_000,
    "a dict of itself": b"}q\x00" + text("model") + b"h\x00s" + text("state_dict") + b"h\x00s",
    "a list of itself": b"]q\x00h\x00a",
    "a subclass of a subclass": call(f"torch._tensor:{CLASS}", f"ctorch._tensor\n{CLASS}\n".encode(), b"N", b")", b"}"),
}

TENSORS: dict[str, bytes] = {
    "negative stride": tensor(stride=(-3, 1)),
    "negative offset": tensor(offset=-1),
    "negative length": tensor(shape=(-2, 3)),
    "offset beyond the end": tensor(offset=1),
    "offset of 2^62": tensor(offset=2**62),
    "shape beyond the end": tensor(shape=(3, 3)),
    "stride beyond the end": tensor(stride=(6, 1)),
    "shape whose product overflows": tensor(shape=(2**32, 2**32), stride=(0, 0)),
    "one number a billion times": tensor(shape=(1000, 1000, 1000), stride=(0, 0, 0)),
    "overlapping": tensor(shape=(4, 3), stride=(1, 1)),
    "empty with a length of 2^62": tensor(shape=(0, 2**62)),
    "fewer strides than lengths": tensor(shape=(2, 3, 1)),
    "a hundred dimensions": tensor(shape=(1,) * 100, stride=(1,) * 100),
    "storage that is not there": tensor(made_of=storage("1")),
    "storage up the tree": tensor(made_of=storage("../../../../etc/passwd")),
    "storage by absolute path": tensor(made_of=storage("/etc/passwd")),
    "storage longer than its data": tensor(made_of=storage(count=7)),
    "storage shorter than its data": tensor(made_of=storage(count=1), shape=(1,), stride=(1,)),
    "storage of 2^60": tensor(made_of=storage(count=2**60)),
    "storage of negative length": tensor(made_of=storage(count=-1)),
    "storage of wider numbers": tensor(made_of=storage(kind="DoubleStorage")),
    "storage of no type": tensor(made_of=storage(kind="nn")),
    "storage in two types": tensor() + b"0" + tensor(made_of=storage(count=3, kind="DoubleStorage")),
    "part of a storage beyond its end": tensor(made_of=storage(view=b"(" + text("v") + number(4) + number(6) + b"t")),
    "part of a storage that is none": tensor(made_of=storage(view=b"(" + text("v") + b"t")),
    "no storage": tensor(made_of=b"N"),
    "a list for a storage": tensor(made_of=b"]"),
    "a function for a storage": tensor(made_of=b"cos\nsystem\n"),
    "lengths that are text": call(
        "torch._utils:_rebuild_tensor_v2", storage(), number(0), b"(" + text("2") + text("3") + b"t", numbers(3, 1)
    ),
    "a parameter of nothing": call("torch._utils:_rebuild_parameter", b"N", b"\x88"),
    "a parameter without arguments": call("torch._utils:_rebuild_parameter"),
    "another type over a part of a storage": tensor(
        made_of=storage(count=24, kind="UntypedStorage", view=b"(" + text("v") + number(20) + number(4) + b"t"),
        shape=(1,),
        stride=(1,),
        typed=b"ctorch\nfloat32\n",
    ),
    "a type beyond its bytes": tensor(
        made_of=storage(count=24, kind="UntypedStorage"), typed=b"ctorch\nfloat64\n", shape=(4,), stride=(1,)
    ),
}

NUMBERS = struct.pack("<6f", *range(6))  # what storage 0 holds
GOOD = program(entries(weight=tensor()))


def zipped(pickle: bytes, *, data: bytes = NUMBERS, kind: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    """A file as torch.save writes it, around any pickle."""
    stream = io.BytesIO()
    members = {"data.pkl": pickle, "byteorder": b"little", "data/0": data, "version": b"3\n", **more}
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    return stream.getvalue()


def legacy(pickle: bytes) -> bytes:
    """A file as torch.save wrote it before 1.6, around any pickle."""
    magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
    system = b"\x80\x02}" + text("little_endian") + b"\x88s."
    keys = b"\x80\x02]" + text("0") + b"a."
    return magic + b"\x80\x02M\xe9\x03." + system + pickle + keys + struct.pack("<q", 6) + NUMBERS


def patched(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new)


def _long_contents() -> bytes:
    """A zip whose table of contents says that it has 50 MB, and has."""
    good = zipped(GOOD)
    end = good.rindex(b"PK\5\6")
    where = struct.unpack_from("<I", good, end + 16)[0]
    table = (good[where:end] * (1 + (50 << 20) // (end - where)))[: 50 << 20]
    return good[:where] + table + patched(good[end:], struct.pack("<I", end - where), struct.pack("<I", len(table)))


def _shared_place() -> bytes:
    """A zip in which two names lead to the same bytes."""
    good = bytearray(zipped(GOOD, **{"data/1": NUMBERS}))
    table = good.index(b"PK\1\2")
    first, second = (good.index(name, table) - 46 for name in (b"archive/data/0", b"archive/data/1"))
    good[second + 42 : second + 46] = good[first + 42 : first + 46]
    return bytes(good)


ZIPS: dict[str, Callable[[], bytes]] = {
    "compressed": lambda: zipped(GOOD, kind=zipfile.ZIP_DEFLATED),
    "bomb": lambda: zipped(GOOD, data=bytes(100 << 20), kind=zipfile.ZIP_DEFLATED),
    "bomb of bzip2": lambda: zipped(GOOD, data=bytes(20 << 20), kind=zipfile.ZIP_BZIP2),
    "no pickle": lambda: patched(zipped(GOOD), b"data.pkl", b"data.pkk"),
    "two pickles": lambda: patched(zipped(GOOD, data_pkl=GOOD), b"archive/data_pkl", b"brchive/data.pkl"),
    "two members of one name": lambda: patched(zipped(GOOD, **{"data/1": b""}), b"data/1", b"data/0"),
    "two names for one place": _shared_place,
    "pickle up the tree": lambda: patched(zipped(GOOD), b"archive/data.pkl", b"archive/../a.pkl"),
    "encrypted": lambda: patched(zipped(GOOD), b"PK\1\2\x14\x03\x14\0\0\0", b"PK\1\2\x14\x03\x14\0\1\0"),
    "wrong checksum of the pickle": lambda: patched(zipped(GOOD), b"weight", b"weighs"),
    "wrong checksum of the numbers": lambda: patched(zipped(GOOD), struct.pack("<f", 5), struct.pack("<f", 4)),
    "highest byte first": lambda: zipped(GOOD, byteorder=b"big"),
    "a program of torch": lambda: zipped(GOOD, **{"constants.pkl": program(SYSTEM)}),
    "a table of contents of 50 MB": _long_contents,
    "a zip in a zip": lambda: zipped(zipped(GOOD)),
    "table beyond the end": lambda: zipped(GOOD)[:-6] + b"\xff\xff\xff\x7f\0\0",
    "a pickle of 70 MB": lambda: zipped(b"N0" * (35 << 20)),
    "the first half": lambda: zipped(GOOD)[: len(zipped(GOOD)) // 2],
    "the second half": lambda: zipped(GOOD)[len(zipped(GOOD)) // 2 :],
    "a signature alone": lambda: b"PK\3\4",
    "ten thousand ends": lambda: zipped(GOOD)[:-22] + b"PK\5\6" * 10_000,
}

OLD_FILES: dict[str, Callable[[], bytes]] = {
    "wrong magic": lambda: patched(legacy(GOOD), b"\x8a\x0al", b"\x8a\x0am"),
    "another version": lambda: patched(legacy(GOOD), b"M\xe9\x03", b"M\xe8\x03"),
    "highest byte first": lambda: patched(legacy(GOOD), b"little_endian\x88", b"little_endian\x89"),
    "no system": lambda: patched(legacy(GOOD), b"}" + text("little_endian") + b"\x88s", b"N"),
    "another storage's key": lambda: patched(legacy(GOOD), b"]" + text("0"), b"]" + text("1")),
    "keys that are numbers": lambda: patched(legacy(GOOD), b"]" + text("0"), b"]K\x00"),
    "keys that are a call": lambda: patched(legacy(GOOD), b"]" + text("0") + b"a", SYSTEM),
    "a longer storage": lambda: patched(legacy(GOOD), struct.pack("<qf", 6, 0), struct.pack("<qf", 7, 0)),
    "a storage of negative length": lambda: patched(legacy(GOOD), struct.pack("<qf", 6, 0), struct.pack("<qf", -6, 0)),
    "cut in the storage": lambda: legacy(GOOD)[:-3],
    "cut before the storage": lambda: legacy(GOOD)[:-28],
    "cut in the pickle": lambda: legacy(GOOD)[:90],
    "only the magic": lambda: legacy(GOOD)[:16],
    "a call before the rest": lambda: program(RUNNING["exec"]) + legacy(GOOD)[16:],
}


def tagged(header: bytes | dict[str, Any], data: bytes = bytes(8), *, length: int | None = None) -> bytes:
    """A safetensors file with any header."""
    header = json.dumps(header).encode() if isinstance(header, dict) else header
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def one(*, dtype: str = "F32", shape: tuple[int, ...] = (2,), place: tuple[int, int] = (0, 8)) -> dict[str, Any]:
    """What a safetensors header says of a tensor."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(place)}


TWICE = f'{{"a": {json.dumps(one())}, "a": {json.dumps(one(place=(8, 16)))}}}'.encode()

SAFETENSORS: dict[str, bytes] = {
    "header of 2^63": tagged(b"{}", length=2**63),
    "header of 100 MB and one": tagged(b"{}", length=100_000_001),
    "header that is not utf-8": tagged(b'{"\xff\xfe": 1}'),
    "header that is a list": tagged(b"[]"),
    "header of no tensors": tagged({}, b""),
    "header nested 100,000 times": tagged(b'{"a":' * 100_000),
    "two tensors in one place": tagged({"a": one(), "b": one()}),
    "a hole": tagged({"a": one(), "b": one(place=(16, 24))}, bytes(24)),
    "end before start": tagged({"a": one(place=(8, 0))}),
    "place beyond the end": tagged({"a": one(shape=(4,), place=(0, 16))}),
    "negative place": tagged({"a": one(place=(-8, 0))}),
    "shape that is not its place's": tagged({"a": one(shape=(3,))}),
    "shape that overflows": tagged({"a": one(shape=(2**33, 2**33))}),
    "negative shape": tagged({"a": one(shape=(-2,))}),
    "unknown type": tagged({"a": one(dtype="F33")}),
    "complex type": tagged({"a": one(dtype="C64", shape=(1,))}),
    "4-bit type": tagged({"a": one(dtype="F4", shape=(16,))}),
    "8-bit scales": tagged({"a": one(dtype="F8_E8M0", shape=(8,))}),
    "bytes left over": tagged({"a": one()}, bytes(9)),
    "bytes missing": tagged({"a": one()}, bytes(7)),
    "a name twice": tagged(TWICE, bytes(16)),
    "metadata that is a list": tagged({"__metadata__": [], "a": one()}),
    "metadata of numbers": tagged({"__metadata__": {"a": 1}, "a": one()}),
    "a name over two lines": tagged({"a\nb": one()}),
    "a name that turns the text round": tagged({"a\u202eb": one()}),
    "infinite": tagged({"a": one()}, struct.pack("<2f", 1, float("inf"))),
}

SHARDS = [
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    "",
    "sub/model.safetensors",
    "..\\model.safetensors",
    "C:model.safetensors",
    "model.safetensors.index.json",
    "a\nb.safetensors",
    "\u202emodel.safetensors",
    "~/model.safetensors",
    "model.safetensors\0.bin",
]

INDEXES = [
    b"{",
    b"[]",
    b"{}",
    b'{"weight_map": []}',
    b'{"weight_map": {}}',
    b'{"weight_map": {"a": 3}}',
    b'{"weight_map": {"a": ["b"]}}',
    b"[" * 100_000,
    b'{"weight_map":' * 100_000,
    b"\xff\xfe{}",
    json.dumps({"weight_map": {f"w{k}": f"{k}.bin" for k in range(1000)}}).encode(),
]
