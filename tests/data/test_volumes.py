"""Volumes give exactly their slices, in 8 bits by a stated window; what cannot be right is refused by its header."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swindow.data import MaskConfig, Scenes, check, open_data, sample_check
from swindow.data.volume_files import MAX_BYTES, read_array, read_header
from swindow.data.volumes import VolumeSlices, suspect_axis, suspect_order
from swindow.errors import DataError
from swindow.images import LIMITS


def train(root: Path, **masks: Any) -> Scenes:
    scenes = open_data(root, val_fraction=0.0, masks=MaskConfig(**masks)).split("train")
    assert isinstance(scenes, Scenes)
    return scenes


def test_slices_are_exact_along_every_axis(tmp_path: Path, volume: Any) -> None:
    label = volume(tmp_path / "a.npz", shape=(5, 8, 10))
    image = np.load(tmp_path / "a.npz")["image"]
    for axis in range(3):
        scenes = train(tmp_path, axis=axis)
        assert len(scenes) == label.shape[axis]
        assert scenes.names[1] == f"{tmp_path}/a.npz[1]"
        assert set(scenes.cases) == {"a"}
        for index in (0, len(scenes) - 1):
            pixels, mask = scenes.pair(index)
            np.testing.assert_array_equal(pixels[0], image.take(index, axis))  # uint8 passes as it is
            np.testing.assert_array_equal(mask, label.take(index, axis))


def test_channels_last_and_single_slices(tmp_path: Path, volume: Any) -> None:
    draw = np.random.default_rng(1)
    four = draw.integers(0, 256, (5, 8, 10, 4), dtype=np.uint8)
    volume(tmp_path / "four" / "a.npz", image=four)
    scenes = train(tmp_path / "four")
    assert scenes.channels == 4
    np.testing.assert_array_equal(scenes.read(3), four[3].transpose(2, 0, 1))
    colour = open_data(tmp_path / "four", channels=3, val_fraction=0.0).split("train")
    with pytest.raises(DataError, match=r"a\.npz: has 4 channels where 3 are wanted"):
        colour.read(0)
    label = volume(tmp_path / "flat" / "case1_slice0.npz", shape=(8, 10))
    volume(tmp_path / "flat" / "case1_slice1.npz", shape=(8, 10), seed=1)
    flat = train(tmp_path / "flat", case=r"(case\d+)_")
    assert (list(flat.names), flat.cases) == (
        [f"{tmp_path}/flat/case1_slice{n}.npz" for n in range(2)],
        ("case1", "case1"),
    )
    np.testing.assert_array_equal(flat.mask(0), label)
    grey = open_data(tmp_path / "flat", channels=3, val_fraction=0.0).split("train")
    assert isinstance(grey, Scenes)
    assert grey.read(0).shape == (3, 8, 10)


def test_intensities_have_a_window(tmp_path: Path, volume: Any) -> None:
    image = np.linspace(-1000, 1000, 400, dtype=np.float32).reshape(5, 8, 10)
    volume(tmp_path / "a.npz", image=image)
    expected = np.rint(np.clip((image + 160) / 400, 0, 1) * 255)  # a window of abdominal CT
    pixels = np.stack([train(tmp_path, intensity=(-160.0, 240.0)).read(i)[0] for i in range(5)])
    assert np.abs(pixels - expected).max() <= 1
    low, high = np.percentile(image, (0.5, 99.5))
    automatic = np.stack([train(tmp_path).read(i)[0] for i in range(5)])
    assert np.abs(automatic - np.rint(np.clip((image - low) / (high - low), 0, 1) * 255)).max() <= 1
    volume(tmp_path / "int" / "a.npz", image=image.astype(np.int16))
    assert np.abs(np.stack([train(tmp_path / "int").read(i)[0] for i in range(5)]) - automatic.astype(int)).max() <= 1
    volume(tmp_path / "void" / "a.npz", image=np.full((5, 8, 10), 7.0))
    assert int(train(tmp_path / "void").read(0).max()) == 0


def test_pairs_of_npy_files_and_other_keys(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    image, label = draw.integers(0, 256, (4, 6, 7), dtype=np.uint8), draw.integers(0, 2, (4, 6, 7)).astype(np.float64)
    for folder, array in (("images", image), ("labels", label)):
        (tmp_path / "pairs" / folder).mkdir(parents=True)
        np.save(tmp_path / "pairs" / folder / "p1.npy", array)
    scenes = train(tmp_path / "pairs")
    np.testing.assert_array_equal(scenes.mask(2), label[2])
    (tmp_path / "keys").mkdir()
    np.savez(tmp_path / "keys" / "a.npz", image=image, seg=label > 0, spacing=np.array([2.5, 1.0, 0.5]))
    keyed = train(tmp_path / "keys", axis=1)
    np.testing.assert_array_equal(keyed.mask(2), label[:, 2])
    assert keyed.spacings == {"a": (1.0, 2.5, 0.5)}


def test_splits_by_folder_and_by_case(tmp_path: Path, volume: Any) -> None:
    for split, count in (("train", 3), ("val", 2)):
        for number in range(count):
            volume(tmp_path / "found" / split / f"{split}{number}.npz", seed=number)
    source = open_data(tmp_path / "found")
    assert {name: len(scenes) for name, scenes in source.splits().items()} == {"train": 15, "val": 10}
    assert source.describe() == (
        f"{tmp_path}/found (volumes): segmentation, 3 classes, train 15 / val 10 grey slices of about 8 × 10 from "
        f"3 / 2 cases; val as found; no table of classes: 3 by the masks' values"
    )
    assert source.classes == ("background", "class 1", "class 2")
    for number in range(10):
        volume(tmp_path / "pool" / f"v{number}.npz", seed=number)
    pool = open_data(tmp_path / "pool", val_fraction=0.3)
    held, kept = (pool.split(name) for name in ("val", "train"))
    assert isinstance(held, Scenes)
    assert isinstance(kept, Scenes)
    assert len(set(held.cases)) == 3
    assert not set(held.cases) & set(kept.cases)
    assert "val held out of train by case (30.0%, seed 0)" in pool.split_note


def test_decoded_volumes_are_kept_within_a_bound(tmp_path: Path, volume: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        volume(tmp_path / f"v{number}.npz", seed=number)
    scenes = train(tmp_path)
    reader = scenes.reader
    assert isinstance(reader, VolumeSlices)
    reads: list[Path] = []

    def counted(path: Any, *rest: Any) -> Any:
        reads.append(path)
        return read_array(path, *rest)

    monkeypatch.setattr("swindow.data.volumes.read_array", counted)
    for index in range(len(scenes)):
        scenes.pair(index)
    assert len(reads) == 8  # image and label of each, once
    reader.memory = 2 * 400 * 3  # two volumes of uint8 pixels and int16 classes
    for index in (0, 5, 0, 5, 10, 5, 0):
        scenes.pair(index)
    assert len(reader._kept) == 2
    assert len(reads) == 8 + 6  # the second volume, the third, and in the end the first once more
    assert not pickle.loads(pickle.dumps(reader))._kept  # noqa: S301 - as another process gets it


def header_only(shape: str, dtype: str = "|u1") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def packed(path: Path, **members: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return path


def npy(array: np.ndarray, **how: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **how)
    return stream.getvalue()


GOOD = npy(np.zeros((3, 4, 5), np.uint8))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"image": header_only("(100000, 100000, 10)") + bytes(10**6)}, "promises 100000 × 100000 × 10 uint8"),
        ({"image": header_only("(4, 4, 4)")}, "cannot be read"),
        ({"image": header_only("(-4, 4, 4)") + bytes(64)}, "limit|cannot be read"),
        ({"image": header_only("(0, 4, 4)")}, "has no values"),
        ({"image": header_only("(3, 4, 5)") + bytes(80)}, "more bytes than its header says"),
        ({"image": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * 10**6}, "a header of 2,147,483,648 bytes"),
        ({"image": npy(np.array([{"a": 1}] * 60, object).reshape(3, 4, 5), allow_pickle=True)}, "never loaded"),
        ({"image": npy(np.zeros((3, 4, 5), np.complex64))}, "an array of complex64, not of numbers"),
        ({"image": b"no array"}, "cannot be read"),
        ({"picture": GOOD}, "no array named image or img or data or x; there are picture, label; rename one"),
    ],
)
def test_files_that_lie_are_refused(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    path = packed(tmp_path / "a.npz", **members, label=GOOD)
    with pytest.raises(DataError, match=message) as caught:
        read_array(path, ("image", "img", "data", "x"), LIMITS)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(check(tmp_path).problems) >= 1


def test_a_bomb_is_refused_before_it_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path / "a.npz", image=header_only(f"({MAX_BYTES + 1},)") + bytes(1000), label=GOOD)
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("it was expanded"))
    with pytest.raises(DataError, match=r"over the limit of 4,294,967,296; cut it into parts"):
        read_header(path, ("image",), LIMITS)
    with pytest.raises(DataError, match="over the limit"):
        read_array(path, ("image",), LIMITS)


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "flipped", "absent"])
def test_damaged_archives_are_refused(tmp_path: Path, volume: Any, damage: str) -> None:
    path = tmp_path / "a.npz"
    volume(path, shape=(9, 20, 20))
    data = path.read_bytes()
    place = len(data) // 3
    path.write_bytes({"empty": b"", "cut": data[: len(data) // 2], "text": b"hello" * 99}.get(damage, data))
    if damage == "flipped":
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
    if damage == "absent":
        path.unlink()
    with pytest.raises(DataError, match=r"a\.npz: "):
        read_array(path, ("image",), LIMITS)


@pytest.mark.parametrize(
    ("image", "label", "kind", "message"),
    [
        ((5, 8, 10), (8, 5, 10), "axis-order", r"than the image's \(5, 8, 10\); save label.transpose\(1, 0, 2\)"),
        ((4, 8, 10), (8, 10), "axis-order", r"channels first, .* save image.transpose\(1, 2, 0\)"),
        ((5, 8, 10), (5, 8, 11), "mask-size", r"the image is \(5, 8, 10\), the label \(5, 8, 11\)"),
        ((5, 8, 10), (5, 8, 10, 3), "mask-size", "a label of 4 axes"),
        ((5, 8, 10), (400,), "mask-size", "a label of 1 axes"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_belong_together(
    tmp_path: Path, volume: Any, image: tuple[int, ...], label: tuple[int, ...], kind: str, message: str
) -> None:
    volume(tmp_path / "good.npz")
    volume(tmp_path / "odd.npz", image=np.zeros(image, np.uint8), label=np.ones(label, np.uint8))
    with pytest.raises(DataError, match=message):
        open_data(tmp_path)
    problem = next(problem for problem in check(tmp_path).problems if problem.path.endswith("odd.npz"))
    assert (problem.kind, problem.fatal) == (kind, True)


def test_the_likely_axis_is_named(tmp_path: Path, volume: Any) -> None:
    for number in range(3):
        volume(tmp_path / f"v{number}.npz", shape=(12, 12, 4 + number), seed=number)
    problems = check(tmp_path).problems
    assert [(problem.kind, problem.fatal) for problem in problems] == [("axis-order", False)]
    assert "a volume of 12 × 12 × 4 is cut along axis 0" in problems[0].message
    assert "give masks.axis 2" in problems[0].message
    assert check(tmp_path, masks=MaskConfig(axis=2)).problems == ()
    assert suspect_axis([(5, 8, 10), (5, 8, 5)], 0) is None
    assert suspect_axis([(8, 8, 8)], 0) is None


def test_a_volume_with_its_axes_exchanged_is_named_among_others(tmp_path: Path, volume: Any) -> None:
    for number in range(4):
        volume(tmp_path / "train" / f"v{number}.npz", shape=(6, 36, 40) if number else (36, 40, 6), seed=number)
    volume(tmp_path / "val" / "w.npz", shape=(6, 36, 40), seed=9)
    problems = check(tmp_path).problems
    assert [(problem.kind, problem.fatal) for problem in problems] == [("axis-order", False)]
    assert "v0.npz: is 36 × 40 × 6 where" in problems[0].message
    assert "axis-order" in [problem.kind for problem in sample_check(open_data(tmp_path))]
    assert suspect_order({"a": (40, 35, 41), "b": (41, 35, 40), "c": (40, 35, 41)}, 0) is None  # as many slices, nearly


def test_labels_must_be_whole_numbers(tmp_path: Path, volume: Any) -> None:
    volume(tmp_path / "a.npz", label=np.full((5, 8, 10), 0.5))
    with pytest.raises(DataError, match="400 label values are no whole numbers"):
        open_data(tmp_path)
    volume(tmp_path / "a.npz", label=np.full((5, 8, 10), -1, np.int16))
    with pytest.raises(DataError, match="hold negative values"):
        open_data(tmp_path)


def test_the_decathlon_and_nnunet(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    draw = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (tmp_path / folder).mkdir()
    truth, pixels = {}, {}
    affine = np.diag([0.5, 0.75, 3.0, 1.0])  # millimetres along x, y, z
    for number in range(3):
        label = draw.integers(0, 3, (10, 8, 4)).astype(np.uint8)
        truth[f"p{number}"] = label
        pixels[f"p{number}"] = draw.integers(0, 256, (2, 10, 8, 4)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(label, affine), tmp_path / f"labelsTr/p{number}.nii.gz")
        for channel in range(2):
            path = tmp_path / f"imagesTr/p{number}_000{channel}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(pixels[f"p{number}"][channel], affine), path)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1, "tumour": 2}}))
    scenes = train(tmp_path)
    assert (len(scenes), scenes.channels, scenes.classes, scenes.background) == (
        12,
        2,
        ("background", "liver", "tumour"),
        0,
    )
    assert scenes.spacings["p1"] == (3.0, 0.75, 0.5)
    for index in (0, 5, 11):
        case, number = scenes.cases[index], index % 4  # z is cut, rows are y, columns x
        np.testing.assert_array_equal(scenes.mask(index), truth[case][:, :, number].T)
        np.testing.assert_array_equal(scenes.read(index), pixels[case][:, :, :, number].transpose(0, 2, 1))
    assert train(tmp_path, axis=2).spacings["p1"] == (0.5, 3.0, 0.75)
    report = check(tmp_path)
    assert report.counts == {"no-masks": 1}
    nibabel.save(nibabel.Nifti1Image(truth["p0"], np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "labelsTr/p0.nii.gz")
    (tmp_path / "imagesTr/p2_0001.nii.gz").write_bytes(b"\x1f\x8b" + bytes(40))
    (tmp_path / "labelsTr/p1.nii.gz").rename(tmp_path / "labelsTr/q.nii.gz")
    assert check(tmp_path).counts == {
        "missing-image": 1,
        "missing-mask": 1,
        "no-masks": 1,
        "other-spacing": 1,
        "unreadable": 1,
    }


def test_nifti_files_that_lie_are_refused(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.eye(4)), path)
    data = path.read_bytes()
    path.write_bytes(data[:42] + struct.pack("<3h", 30_000, 30_000, 30_000) + data[48:])
    with pytest.raises(DataError, match="over the limit of 4,294,967,296"):
        read_array(path, (), LIMITS)
    path.write_bytes(data[:108] + struct.pack("<f", 1e9) + data[112:])
    with pytest.raises(DataError, match="extensions of more than"):
        read_array(path, (), LIMITS)
    for bad in (data[:200], b"text" * 200, data[:-50]):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=r"a\.nii: "):
            read_array(path, (), LIMITS)


def test_voxels_that_are_not_finite(tmp_path: Path, volume: Any) -> None:
    image = np.ones((5, 8, 10), np.float32)
    image[1, 2, 3:5] = np.nan, np.inf
    volume(tmp_path / "a.npz", image=image)
    scenes = train(tmp_path)
    with pytest.raises(DataError, match=r"a.npz: 2 of 400 voxels are NaN or infinite; repair it"):
        scenes.read(0)
    assert [(problem.kind, problem.fatal) for problem in check(tmp_path).problems] == [("not-finite", True)]
