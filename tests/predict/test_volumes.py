"""Volumes: cut as in training, answered slice by slice, written back on the grid that they came on."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from segmenters import Layers
from swindow.errors import ConfigError
from swindow.predict import Failure, Predictor, predict_files
from swindow.predict.volumes import by_channels
from swindow.preprocess import Preprocess
from swindow.sliding import Views

CLASSES = ("background", "bright", "right")


class BrightOrRight(nn.Module):
    """Bright pixels are class 1, dark ones beyond the fifth column class 2: what slice is seen how, is seen."""

    def forward(self, images):
        bright = images[:, :1] * 10
        right = (torch.arange(images.shape[3]) > 4).float().expand_as(bright) * 2 - 1
        return torch.cat([torch.zeros_like(bright), bright, right], dim=1)


@pytest.fixture
def model():
    model = Layers(BrightOrRight(), 3, channels=1).eval()
    model.classes = CLASSES
    model.preprocess = Preprocess(size=(16, 16), mean=(0.5,), std=(0.25,), fit="native")
    return model


def asking(model, **how):
    """A predictor that shows the model each slice as it is, not in the middle of a window."""
    return Predictor(model, views=Views(mode="whole"), **how)


def volume(*shape, seed=0):
    """uint8 noise of two values, and the labels of its slices along the first axis."""
    bright = np.random.default_rng(seed).random(shape) < 0.3
    return np.where(bright, np.uint8(250), np.uint8(5)), bright


def labels_of(bright, axis=0):
    slices = np.moveaxis(bright, axis, 0)
    right = np.arange(slices.shape[2]) > 4
    return np.moveaxis(np.where(slices, 1, np.where(right, 2, 0)), 0, axis).astype(np.uint8)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_is_cut_along_its_axis_and_put_together_again(model, tmp_path, axis):
    image, bright = volume(7, 9, 8)
    np.savez(tmp_path / "v.npz", image=image, label=np.zeros_like(image))  # the label is not looked at
    found = asking(model, axis=axis)(tmp_path / "v.npz")
    np.testing.assert_array_equal(found.mask, labels_of(bright, axis))
    assert (found.axis, found.spacing) == (axis, None)
    assert found.coverage()["bright"] == pytest.approx(bright.mean())


def test_files_of_volumes_hold_labels_rows_and_a_montage(model, tmp_path):
    wanted = {}
    for number in range(2):
        image, bright = volume(6, 10, 12, seed=number)
        np.savez(tmp_path / f"v{number}.npz", image=image, spacing=np.array([2.0, 0.5, 0.5]))
        wanted[f"v{number}"] = labels_of(bright)
    image, bright = volume(30, 10, 12, seed=5)
    np.save(tmp_path / "w.npy", image)
    wanted["w"] = labels_of(bright)
    summary = predict_files(asking(model), [tmp_path], tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert [row["files"]["mask"] for row in rows] == ["masks/v0.npz", "masks/v1.npz", "masks/w.npy"]
    for row in rows[:2]:
        with np.load(tmp_path / "out" / row["files"]["mask"]) as written:
            assert sorted(written) == ["label", "spacing"]
            np.testing.assert_array_equal(written["label"], wanted[row["source"][-6:-4]])
            assert written["label"].dtype == np.uint8
            assert tuple(written["spacing"]) == (2.0, 0.5, 0.5)
        assert row["size"] == {"depth": 6, "height": 10, "width": 12}
        assert set(row["millilitres"]) == {"bright", "right"}
        ones = (wanted[row["source"][-6:-4]] == 1).sum()
        assert row["millilitres"]["bright"] == pytest.approx(ones * 2 * 0.5 * 0.5 / 1000, abs=1e-4)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "masks" / "w.npy"), wanted["w"])
    assert "millilitres" not in rows[2]
    with (
        Image.open(tmp_path / "out" / "overlays" / "v0.png") as six,
        Image.open(tmp_path / "out" / "overlays" / "w.png") as twenty,
    ):
        assert six.width < twenty.width  # three columns of six slices; five of twenty out of thirty
    assert summary.count == 3
    predict_files(asking(model), [tmp_path], tmp_path / "out")  # again: replaced, and not taken for input


@pytest.mark.parametrize("name", ["m.nii.gz", "m.nii"])
def test_nifti_labels_lie_on_the_source_s_grid(model, tmp_path, name):
    nibabel = pytest.importorskip("nibabel", reason="NIfTI needs the extra 'medical'")
    image, bright = volume(5, 9, 8)  # z, y, x
    affine = np.array([[0.0, -0.7, 0.1, 12], [0.8, 0, 0, -30], [0, 0.05, 3.0, 7], [0, 0, 0, 1]])
    source = nibabel.Nifti1Image(image.astype(np.int16).transpose(2, 1, 0) * 4 - 100, affine)
    source.header.set_xyzt_units("mm")
    nibabel.save(source, tmp_path / name)
    predict_files(asking(model), [tmp_path / name], tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert "error" not in row, row
    assert row["files"]["mask"] == f"masks/{name}"
    written = nibabel.load(tmp_path / "out" / "masks" / name)
    np.testing.assert_array_equal(np.asarray(written.dataobj).transpose(2, 1, 0), labels_of(bright))
    np.testing.assert_allclose(written.affine, affine, atol=1e-6)
    assert written.get_data_dtype() == np.uint8
    assert written.header.get_xyzt_units()[0] == "mm"
    zooms = nibabel.load(tmp_path / name).header.get_zooms()
    np.testing.assert_allclose(written.header.get_zooms(), zooms, atol=1e-6)
    assert row["millilitres"]["bright"] == pytest.approx(bright.sum() * np.prod(zooms) / 1000, abs=1e-3)


def test_values_of_more_than_8_bits_are_seen_through_the_model_s_window(model, tmp_path):
    _, bright = volume(4, 9, 8)
    np.save(tmp_path / "v.npy", np.where(bright, 400, -900).astype(np.int16))
    model.preprocess = Preprocess(size=(16, 16), mean=(0.5,), std=(0.25,), fit="native", intensity=(-1000.0, 1000.0))
    np.testing.assert_array_equal(asking(model)(tmp_path / "v.npy").mask, labels_of(bright))
    model.preprocess = Preprocess(size=(16, 16), mean=(0.5,), std=(0.25,), fit="native", intensity=(0.0, 3000.0))
    assert not (asking(model)(tmp_path / "v.npy").mask == 1).any()  # 400 of 3000 is dark


def test_channels_in_files_of_their_own_are_one_volume(tmp_path):
    model = Layers(nn.Conv2d(2, 2, 1), 2, channels=2).eval()
    with torch.no_grad():
        model.layers.weight.copy_(torch.eye(2)[..., None, None]), model.layers.bias.zero_()
    model.classes, model.preprocess = (
        ("a", "b"),
        Preprocess(size=(16, 16), mean=(0.5,) * 2, std=(0.5,) * 2, fit="native"),
    )
    one, two = (np.random.default_rng(seed).integers(0, 256, (4, 6, 5), dtype=np.uint8) for seed in (1, 2))
    np.save(tmp_path / "case_0000.npy", one), np.save(tmp_path / "case_0001.npy", two)
    np.save(tmp_path / "both.npy", np.stack([one, two], axis=-1))
    summary = predict_files(asking(model), [tmp_path], tmp_path / "out")
    assert summary.count == 2
    for name in ("both", "case_0000"):
        np.testing.assert_array_equal(np.load(tmp_path / "out" / "masks" / f"{name}.npy"), two > one)


def test_only_complete_sets_of_channels_are_put_together(tmp_path):
    names = ("a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "c_0001.npy", "c_0000.npy", "d_0000.png", "d_0001.png")
    paths = [tmp_path / name for name in names]
    groups = [[path.name for path in group] for group in by_channels(paths, 2)]
    assert groups == [[names[0], names[1]], [names[2]], ["c_0000.npy", "c_0001.npy"], [names[5]], [names[6]]]
    assert len(by_channels(paths, 1)) == 7


def test_a_single_slice_is_a_picture(model, tmp_path):
    image, bright = volume(1, 9, 8)
    np.savez(tmp_path / "s.npz", image=image[0].astype(np.float32) / 255)
    np.save(tmp_path / "t.npy", image[0][..., None])
    predict_files(asking(model), [tmp_path / "s.npz", tmp_path / "t.npy"], tmp_path / "out")
    for name in "st":
        mask = np.asarray(Image.open(tmp_path / "out" / "masks" / f"{name}.png"))
        np.testing.assert_array_equal(mask, labels_of(bright)[0])


def test_volumes_that_cannot_be_used_are_failures_with_their_name(model, tmp_path):
    image, _ = volume(4, 9, 8)
    holes = image.astype(np.float32)
    holes[1, 2, 3] = np.nan
    np.savez(tmp_path / "nan.npz", image=holes)
    np.savez(tmp_path / "other.npz", picture=image)
    np.save(tmp_path / "five.npy", image.reshape(2, 2, 9, 4, 2))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "nan.npz").read_bytes()[:100])
    (tmp_path / "empty.npy").write_bytes(b"")
    paths = sorted(tmp_path.iterdir())
    found = list(asking(model).stream(paths))
    assert all(isinstance(answer, Failure) for answer in found)
    for path, answer in zip(paths, found, strict=True):
        assert path.name in answer.error
        assert "\n" not in answer.error
    assert "NaN" in next(answer.error for answer in found if "nan.npz" in answer.source)


def test_a_volume_s_own_mask_is_never_replaced(model, tmp_path):
    image, _ = volume(4, 9, 8)
    np.savez(tmp_path / "v.npz", image=image)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "v.npz").write_bytes(b"drawn by hand")
    with pytest.raises(ConfigError, match=r"v\.npz: is there already"):
        predict_files(asking(model), [tmp_path / "v.npz"], tmp_path)
    assert (tmp_path / "masks" / "v.npz").read_bytes() == b"drawn by hand"
