"""Pictures with masks: read exactly, divided by case and seed, in batches that are a function of the seed."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from swindow.config import from_dict, to_dict
from swindow.data import DataSource, MaskConfig, Scenes, duplicates_across, open_data, split_changes, split_record
from swindow.data.augment import AugmentConfig, build_augment
from swindow.data.joint import JointAugment
from swindow.data.loading import train_loader
from swindow.data.scenes import scenes_in_memory
from swindow.errors import ConfigError, DataError
from swindow.preprocess import Preprocess
from swindow.shapes import IGNORE

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data sets are not here")
HEART = MaskConfig(case=r"^(SC-[A-Z-]+-\d+)")


def part(source: DataSource, split: str) -> Scenes:
    scenes = source.split(split)
    assert isinstance(scenes, Scenes)
    return scenes


def preprocess(side: int = 16, channels: int = 3) -> Preprocess:
    return Preprocess(size=(side, side), mean=(0.4,) * channels, std=(0.2,) * channels, fit="native")


def test_masks_are_exact(tmp_path: Path, scenes: Any) -> None:
    written = scenes(tmp_path)
    (tmp_path / "classes.txt").write_text("0 sky 1 2 3\n1 sea 4 5 6\n2 sand 7 8 9\n")
    source = open_data(tmp_path)
    assert source.describe() == (
        f"{tmp_path} (masks): segmentation, 3 classes, train 6 / val 6 colour images of about 20 × 24; val as found"
    )
    for split in ("train", "val"):
        found = part(source, split)
        assert (found.classes, found.colours) == (("sky", "sea", "sand"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))
        for index in range(len(found)):
            pixels, mask = found.pair(index)
            assert (pixels.dtype, pixels.shape, mask.dtype) == (torch.uint8, (3, 20, 24), torch.int64)
            np.testing.assert_array_equal(mask, written[found.mask_name(index)])
            assert torch.equal(found.read(index), pixels)
            assert torch.equal(found.mask(index), mask)


def test_a_mask_of_another_size_is_named(tmp_path: Path, scenes: Any, mask: Any) -> None:
    scenes(tmp_path)
    path = mask(tmp_path / "masks/train/03.png", np.zeros((24, 20), np.uint8))
    train = part(open_data(tmp_path), "train")
    for read in (train.mask, train.pair):
        with pytest.raises(
            DataError, match=r"the mask has 20 × 24 pixels, its image .* 24 × 20; make them alike"
        ) as caught:
            read(3)
        assert str(caught.value).startswith(str(path))


def test_the_split_is_by_case_and_by_seed(tmp_path: Path, scenes: Any) -> None:
    scenes(tmp_path, splits=("",), count=40)
    for folder in ("images", "masks"):
        for number, path in enumerate(sorted((tmp_path / folder).glob("*.png"))):
            path.rename(path.with_name(f"patient{number % 8}_slice{number // 8}.png"))
    masks = MaskConfig(case=r"patient\d+")
    source = open_data(tmp_path, val_fraction=0.25, masks=masks)
    train, val = part(source, "train"), part(source, "val")
    assert (len(train), len(val), len(set(val.cases))) == (30, 10, 2)
    assert not set(train.cases) & set(val.cases)
    again = part(open_data(tmp_path, val_fraction=0.25, masks=masks), "val")
    assert list(again.names) == list(val.names)
    others = {part(open_data(tmp_path, val_fraction=0.25, masks=masks, seed=seed), "val").cases for seed in range(1, 6)}
    assert others - {val.cases}
    record = json.loads(json.dumps(split_record(source)))
    assert split_changes(source, record) == []
    recalled = open_data(tmp_path, val_fraction=0.1, masks=masks, seed=9, split_record=record)
    assert list(part(recalled, "val").names) == list(val.names)
    assert list(part(open_data(tmp_path, for_training=False), "train").cases) == [
        f"patient{case}_slice{number}" for case in range(8) for number in range(5)
    ]
    for folder in ("images", "masks"):
        (tmp_path / folder / "patient3_slice0.png").unlink()
    assert len(split_changes(open_data(tmp_path, val_fraction=0.25, masks=masks), record)) == 1


def test_what_cannot_be_trained_on(tmp_path: Path, scenes: Any, mask: Any) -> None:
    scenes(tmp_path / "only-val", splits=("val", "test"))
    with pytest.raises(DataError, match="there are no training images"):
        open_data(tmp_path / "only-val")
    assert set(open_data(tmp_path / "only-val", for_training=False).splits()) == {"val", "test"}
    scenes(tmp_path / "one", classes=1)
    with pytest.raises(DataError, match="the only class is 'background'; at least two are needed"):
        open_data(tmp_path / "one")
    scenes(tmp_path / "rgb")
    mask(tmp_path / "rgb/masks/train/00.png", np.zeros((20, 24, 3), np.uint8))
    with pytest.raises(
        DataError, match=r"00\.png: is an RGB picture, and no table says which colours are which classes"
    ):
        open_data(tmp_path / "rgb")
    with pytest.raises((ConfigError, TypeCheckError)):  # the latter where the types are checked
        open_data(tmp_path / "rgb", task="paint")  # type: ignore[arg-type]


def test_binary_masks_are_said_aloud(tmp_path: Path, scenes: Any, mask: Any) -> None:
    for path, values in scenes(tmp_path, classes=2).items():
        mask(Path(path), values * np.uint8(255))
    source = open_data(tmp_path)
    assert source.classes == ("background", "object")
    assert source.describe().endswith("; masks of only 0 and 255: 255 is the object, nothing is ignored")
    train = part(source, "train")
    assert train.background == 0
    assert train.mask(0).unique().tolist() == [0, 1]


def test_subsets_and_other_orders_of_classes(tmp_path: Path, scenes: Any) -> None:
    scenes(tmp_path)
    train = part(open_data(tmp_path), "train")
    few = train.subset([4, 1])
    assert list(few.names) == [train.names[4], train.names[1]]
    assert torch.equal(few.mask(0), train.mask(4))
    assert list(train.subset(np.arange(6) > 4).cases) == [train.cases[5]]
    turned = few.aligned(np.array([2, 0, 1]), ("x", "y", "z", "w"), ((0, 0, 0),) * 4)
    assert torch.equal(turned.mask(0), torch.tensor([2, 0, 1])[train.mask(4)])
    assert turned.classes == ("x", "y", "z", "w")
    with_ignored = scenes_in_memory(
        [torch.zeros(1, 1, 3, dtype=torch.uint8)], [torch.tensor([[0, 1, IGNORE]])], classes=("a", "b"), background=0
    )
    moved = with_ignored.aligned(np.array([5, 3]), tuple("abcdef"), ((0, 0, 0),) * 6)
    assert (moved.mask(0).tolist(), moved.background) == ([[5, 3, IGNORE]], 5)


def test_batches_are_a_function_of_the_seed(tmp_path: Path, scenes: Any) -> None:
    scenes(tmp_path, count=10)
    train = part(open_data(tmp_path), "train")
    augment = JointAugment(AugmentConfig(crop="scale", hflip=0.5, elastic=0.02, gamma=0.2), preprocess())

    def batches(seed: int, workers: int = 0) -> list[Any]:
        return list(train_loader(train, augment, batch=4, seed=seed, workers=workers))

    first = batches(1)
    assert [batch.images.shape for batch in first] == [(4, 3, 16, 16)] * 2
    assert (first[0].labels.dtype, first[0].labels.shape) == (torch.int64, (4, 16, 16))
    assert len({index for batch in first for index in batch.indices.tolist()}) == 8
    for again in (batches(1), batches(1, workers=1)):
        for one, other in zip(first, again, strict=True):
            assert all(torch.equal(one[place], other[place]) for place in range(3))
    assert not torch.equal(batches(2)[0].indices, first[0].indices)
    loader = train_loader(train, augment, batch=4, seed=1, workers=0)
    loader.batch_sampler.start(0, 1)
    assert torch.equal(next(iter(loader)).labels, first[1].labels)


def test_bad_pictures_are_left_out_only_when_allowed(tmp_path: Path, scenes: Any, mask: Any) -> None:
    scenes(tmp_path)
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    mask(tmp_path / "masks/train/01.png", np.full((20, 24), 9, np.uint8))
    (tmp_path / "images/train/02.png").write_bytes(b"?")
    train = part(open_data(tmp_path), "train")
    augment = JointAugment(AugmentConfig(), preprocess())
    with pytest.raises(DataError, match=r"0[12]\.png"):
        list(train_loader(train, augment, batch=6, seed=0, workers=0))
    (batch,) = train_loader(train, augment, batch=6, seed=0, workers=0, max_bad=2)
    assert sorted(batch.indices.tolist()) == [0, 3, 4, 5]
    assert len(batch.bad) == 2
    assert any(
        message.startswith(f"{tmp_path}/masks/train/01.png: value 9 (480 of 480 pixels)") for message in batch.bad
    )
    for place, index in enumerate(batch.indices.tolist()):  # the picture's middle, with its own labels
        assert torch.equal(batch.labels[place], train.mask(index)[2:18, 4:20])
        assert torch.equal(batch.images[place], train.read(index)[:, 2:18, 4:20])


def test_kinds_of_data_and_augmentation_must_agree(tmp_path: Path, scenes: Any) -> None:
    scenes(tmp_path)
    train = part(open_data(tmp_path), "train")
    with pytest.raises(TypeError, match="pictures with masks with JointAugment"):
        train_loader(train, build_augment(AugmentConfig(), preprocess()), batch=2, seed=0)


def test_copies_across_splits_are_found(tmp_path: Path, scenes: Any, volume: Any) -> None:
    scenes(tmp_path)
    shutil.copy(tmp_path / "images/train/01.png", tmp_path / "images/val/04.png")
    copies = duplicates_across(open_data(tmp_path))
    assert [(copy.name, copy.other_name) for copy in copies] == [
        (f"{tmp_path}/images/val/04.png", f"{tmp_path}/images/train/01.png")
    ]
    for name in ("train/a", "val/b"):
        volume(tmp_path / "volumes" / f"{name}.npz")
    assert len(duplicates_across(open_data(tmp_path / "volumes"))) == 1


def test_the_config_survives_being_written_down() -> None:
    for config in (
        MaskConfig(),
        HEART,
        MaskConfig(ignore_index=None, intensity=(-160.0, 240.0), reduce_zero_label=True),
    ):
        assert from_dict(MaskConfig, to_dict(config)) == config


@needs_shared
@pytest.mark.parametrize(
    ("name", "masks", "classes", "counts", "channels", "values"),
    [
        ("dubai-aerial", MaskConfig(), 5, (48, 8), 3, {IGNORE, 0, 1, 2, 3, 4}),
        ("sunnybrook-cardiac", HEART, 2, (232, 64), 1, {0, 1}),
        ("msd-hippocampus", MaskConfig(), 3, (3586, 1210), 1, {0, 1, 2}),
    ],
)
def test_real_sets(
    name: str, masks: MaskConfig, classes: int, counts: tuple[int, int], channels: int, values: set[int]
) -> None:
    source = open_data(SHARED / name, masks=masks)
    train = part(source, "train")
    assert (source.task, len(source.classes), source.channels) == ("segment", classes, channels)
    assert (len(train), len(part(source, "val"))) == counts
    found: set[int] = set()
    for index in range(0, len(train), max(1, len(train) // 12)):
        pixels, mask = train.pair(index)
        assert pixels.shape == (channels, *mask.shape)
        found |= set(mask.unique().tolist())
    assert found == values
    assert (train.background is None) == (name == "dubai-aerial")
    if name == "sunnybrook-cardiac":
        assert (len(set(train.cases)), len(set(part(source, "val").cases))) == (29, 8)
