"""Every container that weights come in: the same tensors out, and one clear line for what is no weights."""

import argparse
import collections
import json
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from swindow.checkpoints import containers
from swindow.checkpoints.containers import read_container
from swindow.checkpoints.pickles import reading
from swindow.errors import CheckpointError


def state():
    return collections.OrderedDict(weight=torch.randn(3, 4), bias=torch.randn(3))


def same(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name
        assert found[name].is_contiguous(), name
        assert not found[name].requires_grad, name


def refused(path, says, **options):
    with pytest.raises(CheckpointError, match=says) as caught:
        read_container(path, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture(params=["zip", "legacy"])
def save(request, tmp_path):
    def write(thing, name="weights.pth", **options):
        torch.save(thing, tmp_path / name, _use_new_zipfile_serialization=request.param == "zip", **options)
        return tmp_path / name

    return write


def test_every_type_shape_and_layout_comes_back(save):
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    tensors = {
        **{str(dtype): torch.tensor([[0, 1, 100], [3, 4, 5]]).to(dtype) for dtype in containers.DTYPES.values()},
        "number": torch.tensor(2.5),
        "none": torch.zeros(0),
        "none of 3": torch.zeros(3, 0, 2),
        "transposed": base.permute(2, 0, 1),
        "slice": base[1:, ::2, 1:4],
        "base": base,
        "tied": base,
        "last": torch.randn(7, dtype=torch.float64)[3:],
        "parameter": nn.Parameter(torch.randn(2, 2)),
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    found = read_container(save(tensors)).tensors
    same(found, {name: tensor.detach() for name, tensor in tensors.items()})
    found["slice"].fill_(-1)
    assert torch.equal(found["base"], base)
    assert found["slice"].untyped_storage().nbytes() == found["slice"].numel() * 4


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_of_pickle(save, protocol):
    expected = state()
    same(
        read_container(save({"model": expected, "epoch": 2**70, "x": [None, True]}, pickle_protocol=protocol)).tensors,
        expected,
    )


def test_a_tensor_with_attributes_and_one_of_its_own_class(save):
    nowhere: Any = ModuleType("nowhere")
    nowhere.Named = type("Named", (torch.Tensor,), {"__module__": "nowhere"})
    weight: Any = nn.Parameter(torch.randn(3))
    weight.note = "mine"
    sys.modules["nowhere"] = nowhere
    try:
        path = save({"a": torch.randn(4).as_subclass(nowhere.Named), "b": weight})
    finally:
        del sys.modules["nowhere"]
    found = read_container(path)
    assert [type(tensor) for tensor in found.tensors.values()] == [torch.Tensor, torch.Tensor]
    assert torch.equal(found.tensors["b"], weight.detach())


@pytest.mark.parametrize("entry", [*reading.PLAIN, *reading.AVERAGED])
def test_the_state_dict_is_found_under_its_usual_names(save, entry):
    expected = state()
    found = read_container(save({"epoch": 7, entry: expected, "lr": [0.1]}))
    same(found.tensors, expected)
    assert found.notes == (f"took '{entry}'", "ignored: epoch, lr")


def test_averaged_weights_are_taken_when_asked_for(save):
    plain, averaged = state(), state()
    path = save({"model": plain, "model_ema": averaged, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}})
    found = read_container(path)
    same(found.tensors, plain)
    assert found.notes == ("took 'model', not model_ema", "ignored: optimizer")
    found = read_container(path, prefer_ema=True)
    same(found.tensors, averaged)
    assert found.notes[0] == "took 'model_ema', not model"
    assert "no averaged weights" in " ".join(read_container(save({"model": plain}), prefer_ema=True).notes)


def test_a_state_dict_within_an_entry(save):
    expected = state()
    found = read_container(save({"ema": {"module": expected, "updates": 5}, "step": 3}))
    same(found.tensors, expected)
    assert found.notes == ("took 'ema'", "ignored: step", "took 'module'", "ignored: updates")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_prefix_of_a_wrapper_is_removed(save, prefix):
    expected = state()
    found = read_container(save({prefix + name: tensor for name, tensor in expected.items()}))
    same(found.tensors, expected)
    assert len(found.notes) == prefix.count(".")
    assert found.notes[0] == f"removed the prefix {prefix.split('.')[0]}."


def test_a_prefix_that_not_all_share_stays(save):
    tensors = {"module.a": torch.ones(1), "b": torch.ones(1)}
    same(read_container(save(tensors)).tensors, tensors)


def test_averaged_model_of_torch(save):
    model = nn.Linear(4, 3)
    path = save(torch.optim.swa_utils.AveragedModel(model).state_dict())
    same(read_container(path).tensors, {name: tensor.detach() for name, tensor in model.state_dict().items()})


def test_the_original_repositorys_files_load_though_they_carry_objects(save, tmp_path):
    """Microsoft's resumable files: a yacs config, numpy numbers, argparse; none of these classes is imported."""
    module: Any = ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    node = module.CfgNode({"MODEL": module.CfgNode({"NAME": "swin", "DROP": 0.2}), "AMP": None})
    node.__dict__["__immutable__"] = True
    expected = state()
    optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters()).state_dict()
    sys.modules["yacs.config"] = sys.modules["yacs"] = module
    try:
        everything = {
            "model": expected,
            "optimizer": optimizer,
            "config": node,
            "args": argparse.Namespace(lr=0.1, names={"a"}),
            "max_accuracy": np.float64(81.3),
            "history": np.arange(5),
            "epoch": 299,
        }
        path = save(everything)
    finally:
        del sys.modules["yacs.config"], sys.modules["yacs"]
    found = read_container(path)
    same(found.tensors, expected)
    notes = " ".join(found.notes)
    assert "ignored: optimizer, config, args, max_accuracy, history, epoch" in notes
    assert "yacs.config.CfgNode" in notes
    assert "argparse.Namespace" in notes
    assert "yacs" not in sys.modules


def test_entries_that_are_no_tensors_are_named(save):
    found = read_container(save({"a": torch.ones(2), "count": 3, "extra": None}))
    assert list(found.tensors) == ["a"]
    assert found.notes == ("no tensors, ignored: count, extra",)


def test_safetensors_with_metadata_and_what_lies_beside(tmp_path):
    expected = dict(state())
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(expected, path, metadata={"format": "pt"})
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5]}')
    for place in (path, tmp_path, str(path)):
        found = read_container(place)
        same(dict(sorted(found.tensors.items())), dict(sorted(expected.items())))
        assert found.metadata == {"format": "pt"}
        assert found.config == {"model_type": "swin"}
        assert found.preprocessor == {"image_mean": [0.5]}
        assert found.path == path


@pytest.mark.parametrize("low_byte", [0x80, 0x50, 0x7B, 0x1F, 0x42])
def test_a_header_may_have_any_length(tmp_path, low_byte):
    """The first bytes of safetensors are a length, which may look like the start of another kind of file."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    header += b" " * ((low_byte - len(header)) % 256)
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<f", 2.5))
    assert read_container(tmp_path / "a.safetensors").tensors["a"].item() == 2.5


def test_safetensors_come_first_in_a_folder(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    torch.save({"junk": 1}, tmp_path / "training_args.bin")
    assert read_container(tmp_path).tensors["a"] == 0
    safetensors.torch.save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert read_container(tmp_path).tensors["a"] == 1


def test_a_folder_with_one_file_of_another_name(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "swin_tiny.pth")
    assert read_container(tmp_path).path.name == "swin_tiny.pth"
    torch.save({"a": torch.ones(1)}, tmp_path / "swin_small.pth")
    refused(tmp_path, r"several weights in it \(swin_small.pth, swin_tiny.pth\); give one")


def sharded(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    parts = [{"a": torch.randn(2), "b": torch.randn(3)}, {"c": torch.randn(4)}]
    stem, ending = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    places = {}
    for number, part in enumerate(parts, 1):
        name = f"{stem}-{number:05}-of-00002.{ending}"
        (safetensors.torch.save_file if ending == "safetensors" else torch.save)(part, folder / name)
        places |= dict.fromkeys(part, name)
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return parts[0] | parts[1]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_sharded_set_by_its_index_or_its_folder(tmp_path, kind):
    expected = sharded(tmp_path, kind)
    for place in (tmp_path, next(tmp_path.glob("*.index.json"))):
        found = read_container(place)
        same(found.tensors, expected)
        assert found.notes[0] == "2 shards"


def test_shards_that_are_links_as_in_the_cache_of_the_hub(tmp_path):
    (tmp_path / "snapshot").mkdir()
    expected = sharded(tmp_path / "snapshot", "safetensors")
    for number, shard in enumerate(sorted((tmp_path / "snapshot").glob("*.safetensors"))):
        shard.rename(tmp_path / f"blob{number}")
        shard.symlink_to(Path("..") / f"blob{number}")
    same(read_container(tmp_path / "snapshot").tensors, expected)


def test_a_sharded_set_that_is_not_whole(tmp_path):
    sharded(tmp_path, "safetensors")
    index, shard = tmp_path / "model.safetensors.index.json", tmp_path / "model-00002-of-00002.safetensors"
    safetensors.torch.save_file({"other": torch.ones(1)}, shard)
    with pytest.raises(CheckpointError, match=r"00002-of-00002.safetensors: 'c' is not in it, as .* says"):
        read_container(index)
    shard.unlink()
    refused(index, r"of its 2 shards, model-00002-of-00002.safetensors missing; fetch the whole set")


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_links_that_lead_nowhere_or_round(tmp_path):
    (tmp_path / "a.pth").symlink_to("nowhere")
    (tmp_path / "b.pth").symlink_to("b.pth")
    for name in ("a.pth", "b.pth", "nothing at all"):
        refused(tmp_path / name, "no such file")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.pth", b"", "it is empty; fetch it again"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "run `git lfs pull`"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "run `git lfs pull`"),
        ("a.pth", b"\n<!DOCTYPE html><html>404</html>", "it is a web page"),
        ("a.bin", b'{"error": "not found"}', "it is JSON text"),
        ("a.pth", b"\x1f\x8b\x08" + bytes(50), "unpack it first"),
        ("a.pth", bytes(257) + b"ustar" + bytes(300), "unpack it first"),
        ("a.h5", b"\x89HDF\r\n\x1a\n", "Keras"),
        ("a.onnx", b"\x08\x07\x12", "ONNX; save it from PyTorch"),
        ("a.msgpack", b"\x81\xa6params", "Flax"),
        ("a.ckpt", b"some bytes that are nothing", "neither a zip nor a row of pickles"),
        ("a.safetensors", struct.pack("<Q", 2**63) + b"{}", "not a readable safetensors file"),
        ("a.safetensors", b"\x80\x02\x8a\n", "rename it to .pth"),
        ("a.pth", pickle.dumps({"a": 1}), "bare pickle"),
        ("a.pth", b"PK\x05\x06" + bytes(18), "not of torch.save"),
    ],
)
def test_what_is_no_weights_says_what_it_is(tmp_path, name, content, says):
    refused(write(tmp_path / name, content), says)


def test_a_folder_without_weights(tmp_path):
    refused(tmp_path, r"no model\.safetensors in it")
    write(tmp_path / "tf_model.h5", b"\x89HDF")
    write(tmp_path / "flax_model.msgpack", b"\x81")
    refused(tmp_path, "what is there is for Flax and Keras: save it from PyTorch")


@pytest.mark.parametrize(
    ("thing", "says"),
    [
        ({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1}]}, "optimiser's state and no weights"),
        ({"epoch": 3, "lr": 0.1}, r"holds no weights \(epoch, lr\)"),
        ({}, r"holds no weights \(nothing\)"),
        (torch.ones(3), "not a dict of tensors"),
        ([torch.ones(3)], "holds a list"),
        (nn.Linear(2, 2), r"holds a whole object \(torch.nn.modules.linear.Linear\)"),
        ({"a": torch.ones(3, dtype=torch.complex64)}, r"unusual types \(torch.ComplexFloatStorage\)"),
        ({"a": torch.eye(3).to_sparse()}, "quantised, sparse or of unusual types"),
        ({"a": torch.ones(2), "": torch.ones(2)}, "a name that cannot be printed"),
        ({"a": torch.ones(2), "b\n": torch.ones(2)}, "a name that cannot be printed"),
    ],
)
def test_what_torch_saved_but_is_no_state_dict(save, thing, says):
    refused(save(thing), says)


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:UserWarning")
def test_quantised_files(save, tmp_path):
    weight = torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8)
    refused(save({"a": weight}), "quantised")
    path = tmp_path / "int4.safetensors"
    safetensors.torch.save_file({"fc.qweight": torch.ones(2, dtype=torch.int32)}, path)
    refused(path, "fc.qweight is quantised")
    safetensors.torch.save_file({"fc.weight": torch.ones(2).to(torch.float8_e4m3fn)}, path)
    refused(path, r"fc.weight is quantised or of an unusual type \(float8_e4m3fn\)")


@pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning")
def test_torchscript_is_not_run(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    refused(tmp_path / "script.pt", "TorchScript archive, which holds a program")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(save, tmp_path, dtype, value):
    tensors = {"good": torch.ones(3), "bad": torch.ones(5, dtype=dtype), "worse": torch.ones(2, dtype=dtype)}
    tensors["bad"][2:4] = value
    tensors["worse"][:] = value
    says = "bad holds 2 values that are not finite, and 1 other tensors do"
    refused(save(tensors), says)
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "values that are not finite")


def test_large_but_finite_values_are_fine(save):
    tensors = {"half": torch.full((100,), 60000.0).half(), "single": torch.full((100,), 3e38)}
    same(read_container(save(tensors)).tensors, tensors)


def test_one_changed_bit_is_found(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path) as archive:
        place = next(member for member in archive.infolist() if member.filename.endswith("/data/0")).header_offset
    content = bytearray(path.read_bytes())
    content[place + 2000] ^= 1
    path.write_bytes(content)
    refused(path, "a storage differs from its checksum")


def test_files_that_torch_wrote_without_checksums(tmp_path):
    expected = state()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(expected, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    same(read_container(tmp_path / "a.pth").tensors, expected)


def test_a_config_that_is_damaged(tmp_path):
    torch.save(state(), tmp_path / "pytorch_model.bin")
    write(tmp_path / "config.json", b"{")
    with pytest.raises(CheckpointError, match=r"config\.json: not readable as JSON"):
        read_container(tmp_path)
    write(tmp_path / "config.json", b"[1]")
    with pytest.raises(CheckpointError, match=r"config\.json: holds no JSON object"):
        read_container(tmp_path)
