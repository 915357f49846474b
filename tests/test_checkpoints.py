"""Our own checkpoints: there and back, and every kind of wrong file."""

import json
import struct

import pytest
import safetensors.torch
import torch

import swindow
from swindow.checkpoints import load_weights
from swindow.checkpoints.files import folder_draft, newest_sealed, verify, write_atomic
from swindow.checkpoints.own import card_text
from swindow.errors import CheckpointError
from swindow.preprocess import Preprocess


@pytest.fixture
def model():
    model = swindow.build("swin_nano", num_classes=3, in_channels=1, dim=16, depths=(1, 1), num_heads=(1, 2), window=4)
    model.preprocess = Preprocess(size=(16, 16), mean=(0.5,), std=(0.25,))
    model.classes = ("cat", 'a "quoted" dog', "каша")
    return model.eval()


@pytest.mark.parametrize("name", ["folder", "file.safetensors"])
def test_a_checkpoint_alone_rebuilds_its_model(model, tmp_path, name):
    images = torch.randn(2, 1, 16, 16)
    swindow.save(model, tmp_path / name)
    again = swindow.load(tmp_path / name)
    assert again.config == model.config
    assert again.preprocess == model.preprocess
    assert again.classes == model.classes
    assert not again.training
    assert torch.equal(again(images), model(images))


def test_saving_twice_gives_the_same_bytes(model, tmp_path):
    swindow.save(model, tmp_path / "a.safetensors")
    swindow.save(swindow.load(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_run_folder_gives_its_best_weights(model, tmp_path):
    swindow.save(model, tmp_path / "best")
    with torch.no_grad():
        model.head.linear.bias.fill_(7)
    swindow.save(model, tmp_path / "last")
    assert not torch.equal(swindow.load(tmp_path).head.linear.bias, model.head.linear.bias)
    assert torch.equal(swindow.load(tmp_path / "last").head.linear.bias, model.head.linear.bias)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a readable safetensors file"),
        (b"PK\x03\x04 a zip, as torch.save makes them", "not a readable safetensors file"),
        (struct.pack("<Q", 2**40) + b"{}", "not a readable safetensors file"),
        (safetensors.torch.save({"a": torch.ones(1)}), "in no format that swindow knows"),
        (safetensors.torch.save({"a": torch.tensor([float("nan")])}), "not finite"),
        (safetensors.torch.save({"a": torch.ones(1)}, metadata={"swindow": "not = toml ="}), "cannot be read"),
        (safetensors.torch.save({"a": torch.ones(1)}, metadata={"swindow": "model = 3"}), "cannot be read"),
    ],
)
def test_wrong_files_are_refused_in_one_line(tmp_path, content, says):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=says) as caught:
        swindow.load(tmp_path)
    assert "\n" not in str(caught.value)
    assert "model.safetensors" in str(caught.value)


def test_a_truncated_file_is_refused(model, tmp_path):
    path = swindow.save(model, tmp_path / "model.safetensors")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="not a readable"):
        swindow.load(path)


def test_nothing_there(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        swindow.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors in it"):
        swindow.load(tmp_path)


def test_a_mismatch_lists_everything_and_changes_nothing(model, tmp_path):
    state = dict(model.state_dict())
    del state["head.linear.bias"]
    state["extra"] = torch.zeros(1)
    state["head.linear.weight"] = state["head.linear.weight"].T.contiguous()
    safetensors.torch.save_file(state, tmp_path / "wrong.safetensors", metadata={"swindow": card_text(model)})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, tmp_path / "wrong.safetensors")
    for part in ("missing head.linear.bias", "unexpected extra", "head.linear.weight is 32×3, the model's is 3×32"):
        assert part in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_head_can_be_left_out(model, tmp_path):
    other = swindow.build("swin_nano", num_classes=5, in_channels=1, dim=16, depths=(1, 1), num_heads=(1, 2), window=4)
    swindow.save(model, tmp_path)
    with pytest.raises(CheckpointError, match=r'head="reset"'):
        load_weights(other, tmp_path)
    said = []
    report = load_weights(other, tmp_path, head="reset", say=said.append)
    assert report.reset == ("head.linear.weight", "head.linear.bias")
    assert said == [str(report)]
    assert torch.equal(other.backbone.patch_embed.proj.weight, model.backbone.patch_embed.proj.weight)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_atomic(tmp_path / "file", "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atomic(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def sealed(path, step):
    with folder_draft(path) as draft:
        (draft / "state.json").write_text(json.dumps({"step": step}))
        (draft / "weights").write_bytes(bytes(1000))


def test_newest_is_the_highest_step_of_what_is_intact(tmp_path):
    for name, step in {"last": 3, "last.old-1": 2, "last.tmp-2": 5, "last.tmp-3": 4}.items():
        sealed(tmp_path / "elsewhere" / name, step)
    home = tmp_path / "elsewhere"
    assert newest_sealed(home / "last")[1]["step"] == 5
    damaged = bytearray((home / "last.tmp-2" / "weights").read_bytes())
    damaged[500] ^= 1
    (home / "last.tmp-2" / "weights").write_bytes(damaged)
    with pytest.raises(CheckpointError, match="damaged"):
        verify(home / "last.tmp-2")
    assert newest_sealed(home / "last")[1]["step"] == 4


def test_a_failed_draft_leaves_the_old_folder(tmp_path):
    sealed(tmp_path / "last", 1)
    with pytest.raises(FileNotFoundError), folder_draft(tmp_path / "last") as draft:
        (draft / "no such folder" / "state.json").write_text("{}")
    assert newest_sealed(tmp_path / "last")[1]["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last"]
