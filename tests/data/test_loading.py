"""Batches: who is in them, that workers and interruptions change nothing, and how errors arrive."""

import dataclasses
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sleeping import Sleeper
from swindow.data import loading, open_data
from swindow.data.annotated import Annotated, annotated_in_memory
from swindow.data.augment import AugmentConfig, build_augment
from swindow.data.boxes import ObjectAugment
from swindow.data.datasets import Images
from swindow.data.joint import JointAugment
from swindow.data.loading import (
    AnnotatedView,
    BadImages,
    Batch,
    EpochBatches,
    Loader,
    TrainView,
    eval_loader,
    train_loader,
)
from swindow.data.seeds import epoch_order, sample_seed
from swindow.errors import ConfigError, DataError
from swindow.objects import Objects
from swindow.preprocess import Preprocess

PHOTO = Preprocess(size=(12, 12), mean=(0.5,) * 3, std=(0.2,) * 3)
SCAN = Preprocess(size=(8, 8), mean=(0.5,), std=(0.2,), crop_ratio=1.0)
LIVELY = AugmentConfig(crop="resized", hflip=0.5, randaugment_ops=1, erasing=0.3)


@pytest.fixture(name="photos")
def photos_fixture(tmp_path: Path, classes: Any) -> Images:
    return open_data(classes(tmp_path / "photos", {"a": 12, "b": 11}), val_fraction=0.0).split("train")


@pytest.fixture(name="scans", scope="module")
def scans_fixture() -> Images:
    return open_data("digits").split("train").subset(range(100))


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a, b) for x, y in zip(left, right, strict=True) for a, b in zip(x[:3], y[:3], strict=True)
    )


@pytest.mark.parametrize("kind", ["photos", "scans"])
def test_an_epoch_meets_every_image_once_and_can_be_entered_anywhere(kind: str, request: Any) -> None:
    images = request.getfixturevalue(kind)
    augment = build_augment(LIVELY, PHOTO if kind == "photos" else SCAN)
    loader = train_loader(images, augment, batch=5, seed=3, workers=0)
    assert len(loader) == len(images) // 5
    loader.batch_sampler.start(2)
    epoch = list(loader)
    indices = torch.cat([batch.indices for batch in epoch]).tolist()
    assert indices == epoch_order(len(images), 3, 2)[: 5 * len(loader)].tolist()
    for batch in epoch:
        assert batch.images.shape == (5, images.channels, *augment.preprocess.size)
        assert batch.images.dtype == torch.uint8
        assert batch.labels.tolist() == images.labels[batch.indices].tolist()
        assert batch.bad == []
    loader.batch_sampler.start(2, 2)
    assert same(list(loader), epoch[2:])
    assert len(loader) == len(images) // 5  # a whole epoch's, wherever one begins
    loader.batch_sampler.start(3)
    assert not same(list(loader), epoch)


def test_the_batch_size_and_the_order_do_not_change_an_image(scans: Images) -> None:
    view = TrainView(scans, build_augment(LIVELY, SCAN), seed=1)
    batch = view.__getitems__([(4, 7), (4, 9)])
    assert isinstance(batch, Batch)
    assert torch.equal(batch.images[1], view[4, 9])
    assert not torch.equal(view[5, 9], view[4, 9])
    assert not torch.equal(TrainView(scans, build_augment(LIVELY, SCAN), seed=2)[4, 9], view[4, 9])


def test_few_images_make_one_small_batch() -> None:
    assert list(EpochBatches(3, 5, 0)) == [[(0, int(index)) for index in epoch_order(3, 0, 0)]]
    assert [len(batch) for batch in EpochBatches(11, 5, 0)] == [5, 5]
    assert len(EpochBatches(3, 5, 0)) == 1


def test_loading_leaves_the_models_generator_alone(scans: Images) -> None:
    loader = train_loader(scans, build_augment(LIVELY, SCAN), batch=10, seed=0, workers=0)
    state = torch.get_rng_state()
    list(loader)
    list(eval_loader(scans, SCAN, batch=10, workers=0))
    assert torch.equal(torch.get_rng_state(), state)


def test_judging_takes_every_image_in_order(photos: Images, scans: Images) -> None:
    for images, preprocess in ((photos, PHOTO), (scans, SCAN)):
        batches = list(eval_loader(images, preprocess, batch=7, workers=0))
        assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(len(images)))
        assert torch.cat([batch.labels for batch in batches]).tolist() == images.labels.tolist()
        expected = torch.stack([preprocess.resize(images.read(index)) for index in range(len(images))])
        assert torch.equal(torch.cat([batch.images for batch in batches]), expected)
    assert len(eval_loader(photos, PHOTO, batch=7)) == 4


def spoil(images: Images, *indices: int) -> list[str]:
    for index in indices:
        path = Path(images.names[index])
        path.write_bytes(path.read_bytes()[:-30])
    return [images.names[index] for index in indices]


def test_the_first_bad_image_ends_training_and_judging(photos: Images) -> None:
    [name] = spoil(photos, 4)
    loader = train_loader(photos, build_augment(LIVELY, PHOTO), batch=23, seed=0, workers=0)
    for batches in (loader, eval_loader(photos, PHOTO, batch=8, workers=0)):
        with pytest.raises(DataError) as caught:
            list(batches)
        assert str(caught.value).startswith(f"{name}: cannot be read")
        assert "\n" not in str(caught.value)


def test_bad_images_are_left_out_and_counted_when_that_is_allowed(photos: Images) -> None:
    spoilt = spoil(photos, 4, 7)
    loader = train_loader(photos, build_augment(AugmentConfig(), PHOTO), batch=23, seed=0, workers=0, max_bad=2)
    bad = BadImages(2)
    for epoch in (0, 1):
        loader.batch_sampler.start(epoch)
        [batch] = loader
        assert len(batch.images) == len(batch.labels) == len(batch.indices) == 21
        assert batch.labels.tolist() == photos.labels[batch.indices].tolist()
        assert sorted(line.split(": ")[0] for line in batch.bad) == sorted(spoilt)
        bad.add(batch.bad)
    assert bad.count == 2  # met in both epochs, counted once
    with pytest.raises(DataError, match=r"x: broken \(skipped 3 images, 2 allowed: --max-bad\)"):
        bad.add(["x: broken"])
    with pytest.raises(DataError, match=r"^x: broken$"):
        BadImages(0).add(["x: broken"])
    assert BadImages(5, 3).count == 3


def test_a_batch_of_nothing_but_bad_images_ends_training(photos: Images) -> None:
    spoil(photos, *range(len(photos)))
    loader = train_loader(photos, build_augment(AugmentConfig(), PHOTO), batch=4, seed=0, workers=0, max_bad=99)
    with pytest.raises(DataError, match="not one image of a batch of 4 can be read; the first: "):
        next(iter(loader))


def test_a_picture_too_thin_to_squash_is_named(tmp_path: Path, photos: Images) -> None:
    import hostile
    from swindow.images import ImageLimits

    Path(photos.names[0]).write_bytes(hostile.png(1, 9000, rows=bytes(2 * 9000)))
    squash = Preprocess(size=(12, 12), mean=(0.5,) * 3, std=(0.2,) * 3, fit="squash")
    tight = Images(
        names=photos.names,
        labels=photos.labels,
        classes=photos.classes,
        channels=3,
        limits=ImageLimits(max_resized_pixels=100_000),
    )
    with pytest.raises(DataError, match=r"0\.png: resizing 9000 × 1 pixels to 12 × 12 takes 108,000 pixels"):
        list(eval_loader(tight, squash, batch=4, workers=0))


@pytest.fixture(name="working")
def working_fixture(photos: Images) -> Iterator[tuple[Images, Loader]]:
    loader = train_loader(photos, build_augment(LIVELY, PHOTO), batch=5, seed=3, workers=2)
    yield photos, loader
    del loader


def test_workers_change_nothing_and_pass_errors_on(working: tuple[Images, Loader]) -> None:
    photos, loader = working
    alone = train_loader(photos, build_augment(LIVELY, PHOTO), batch=5, seed=3, workers=0)
    state = torch.get_rng_state()
    for epoch, start in ((0, 0), (1, 0), (1, 2)):
        for each in (loader, alone):
            each.batch_sampler.start(epoch, start)
        assert same(list(loader), list(alone))
    assert torch.equal(torch.get_rng_state(), state)
    next(iter(loader))  # an epoch left in the middle does not leak into the next
    loader.batch_sampler.start(4)
    alone.batch_sampler.start(4)
    assert same(list(loader), list(alone))
    [name] = spoil(photos, 4)
    with pytest.raises(DataError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"{name}: cannot be read")
    assert "Traceback" not in str(caught.value)


def test_workers_outlive_a_polite_stop_but_not_a_kill(working: tuple[Images, Loader]) -> None:
    _, loader = working
    batches = iter(loader)
    next(batches)
    workers = [worker.pid for worker in loader._loader._iterator._workers]  # type: ignore[union-attr]
    for _ in workers[1:]:
        next(batches)  # from each in turn: one that is still starting knows nothing of politeness yet
    for pid in workers:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    assert len(list(batches)) == 4 - len(workers)  # what a stopping run still needs
    loader.batch_sampler.start(1)
    batches = iter(loader)
    next(batches)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a process that reads images died \(.*\): out of memory, killed.*--workers 0"):
        _go_on(loader)


def _go_on(loader: Loader) -> None:
    for epoch in range(2, 20):
        loader.batch_sampler.start(epoch)
        list(loader)


def test_images_in_memory_go_to_workers_too(scans: Images) -> None:
    loader = train_loader(scans, build_augment(LIVELY, SCAN), batch=20, seed=0, workers=1)
    alone = train_loader(scans, build_augment(LIVELY, SCAN), batch=20, seed=0)
    assert (loader.workers, alone.workers) == (1, 0)  # left to decide, it takes none for images in memory
    assert same(list(loader), list(alone))


FOUND = Preprocess(size=(40, 56), mean=(0.5,) * 3, std=(0.2,) * 3, fit="within", interpolation="bilinear")
SHAKEN = AugmentConfig(crop="sides", sides=(24, 32, 40), hflip=0.5, jitter=(0.2, 0.2, 0.2, 0.0), paste=0.5)


def annotated(count: int = 9, *, masks: bool = True) -> Annotated:
    """Pictures of many sizes; the one at 4 shows nothing."""
    images, objects = [], []
    for index in range(count):
        draw = np.random.default_rng(index)
        height, width = draw.integers(30, 70, 2).tolist()
        images.append(torch.from_numpy(draw.integers(1, 256, (3, height, width), dtype=np.uint8)))
        low = draw.integers(0, (width - 12, height - 12), (0 if index == 4 else 2 + index % 3, 2))
        boxes = np.concatenate([low, low + draw.integers(4, 12, low.shape)], axis=1)
        drawn = torch.zeros(len(boxes), height, width, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(drawn, boxes.tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        objects.append(
            Objects(
                boxes=torch.from_numpy(boxes).float(),
                labels=torch.from_numpy(draw.integers(0, 3, len(boxes))),
                masks=drawn if masks else None,
                crowd=torch.zeros(len(boxes), dtype=torch.bool),
                areas=drawn.sum((1, 2)).float(),
            )
        )
    return annotated_in_memory(images, objects, classes=["a", "b", "c"])


def same_objects(left: list[Batch], right: list[Batch]) -> bool:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        if not (torch.equal(one.images, other.images) and torch.equal(one.indices, other.indices)):
            return False
        assert one.frames == other.frames
        for mine, yours in zip(one.labels, other.labels, strict=True):
            for field in dataclasses.fields(Objects):
                a, b = getattr(mine, field.name), getattr(yours, field.name)
                assert (a is None) == (b is None)
                if a is not None and not torch.equal(a, b):
                    return False
    return True


@pytest.mark.parametrize("masks", [True, False])
def test_pictures_of_unequal_sizes_lie_in_batches_with_their_objects(masks: bool) -> None:
    pictures = annotated(masks=masks)
    config = SHAKEN if masks else dataclasses.replace(SHAKEN, paste=0.0)
    loader = train_loader(pictures, ObjectAugment(config, FOUND), batch=3, seed=3, workers=0, divisor=16)
    state = torch.get_rng_state()
    epoch = list(loader)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(epoch) == len(loader) == 3
    assert torch.cat([batch.indices for batch in epoch]).tolist() == epoch_order(9, 3, 0).tolist()
    view = AnnotatedView(pictures, ObjectAugment(config, FOUND), 3)
    sizes = set()
    for batch in epoch:
        assert batch.frames is not None
        canvas = tuple(batch.images.shape[-2:])
        assert batch.frames.canvas == canvas
        assert [side % 16 for side in canvas] == [0, 0]
        assert all(side - most < 16 for side, most in zip(canvas, map(max, *batch.frames.sizes), strict=True))
        outside = batch.frames.padding(canvas)
        assert (batch.images.masked_select(outside[:, None]) == 0).all()
        for place, index in enumerate(batch.indices.tolist()):
            picture, objects = view[0, index]
            height, width = batch.frames.sizes[place]
            assert torch.equal(batch.images[place, :, :height, :width], picture)
            found = batch.labels[place]
            assert torch.equal(found.boxes, objects.boxes)
            assert torch.equal(found.labels, objects.labels)
            assert torch.equal(found.areas, objects.areas)
            assert (found.masks is None) == (not masks)
            if masks:
                assert found.masks.shape == (len(found), *canvas)
                assert torch.equal(found.masks[:, :height, :width], objects.masks)
                assert not (found.masks & outside[place]).any()
            sizes.add((height, width))
    assert len(sizes) > 5
    loader.batch_sampler.start(0, 1)
    assert same_objects(list(loader), epoch[1:])
    loader.batch_sampler.start(1)
    assert not same_objects(list(loader), epoch)


def test_pictures_without_objects_stay_in_batches() -> None:
    loader = train_loader(annotated(), ObjectAugment(AugmentConfig(), FOUND), batch=9, seed=0, workers=0)
    [batch] = loader
    counts = dict(zip(batch.indices.tolist(), map(len, batch.labels), strict=True))
    assert counts == {index: 0 if index == 4 else 2 + index % 3 for index in range(9)}
    nothing = annotated().subset([4])
    [batch] = train_loader(nothing, ObjectAugment(SHAKEN, FOUND), batch=1, seed=0, workers=0)
    assert [len(found) for found in batch.labels] == [0]
    assert batch.labels[0].masks.shape == (0, *batch.images.shape[-2:])


def test_jittered_pictures_make_batches_of_one_size() -> None:
    square = dataclasses.replace(FOUND, size=(48, 48))
    augment = ObjectAugment(AugmentConfig(crop="jitter", scale=(0.2, 0.6), hflip=0.5), square)
    for batch in train_loader(annotated(), augment, batch=3, seed=0, workers=0, divisor=16):
        assert batch.images.shape == (3, 3, 48, 48)
        assert batch.frames is not None
        assert max(map(max, batch.frames.sizes)) <= 29


def test_objects_from_workers_are_the_same() -> None:
    pictures = annotated()
    alone = train_loader(pictures, ObjectAugment(SHAKEN, FOUND), batch=3, seed=3, workers=0)
    loader = train_loader(pictures, ObjectAugment(SHAKEN, FOUND), batch=3, seed=3, workers=2)
    for epoch, start in ((0, 0), (1, 1)):
        for each in (loader, alone):
            each.batch_sampler.start(epoch, start)
        assert same_objects(list(loader), list(alone))


def test_what_pinning_makes_of_frames_is_undone() -> None:
    """It makes a list of every plain tuple."""
    [batch] = train_loader(annotated(), ObjectAugment(AugmentConfig(), FOUND), batch=9, seed=0, workers=0)
    [raw] = [
        AnnotatedView(annotated(), ObjectAugment(AugmentConfig(), FOUND), 0).__getitems__([(0, i) for i in range(9)])
    ]
    assert isinstance(raw, Batch)
    assert raw.frames is not None
    labels = raw.labels._replace(counts=list(raw.labels.counts), canvas=list(raw.labels.canvas))
    frames = type(raw.frames)(list(raw.frames.canvas), [list(size) for size in raw.frames.sizes])  # type: ignore[arg-type]
    unpinned = loading._unpacked(raw._replace(labels=labels, frames=frames))
    assert unpinned.frames == raw.frames
    assert batch.frames is not None
    assert isinstance(unpinned.frames, type(batch.frames))
    assert [len(found) for found in unpinned.labels] == list(raw.labels.counts)


class Unreadable:
    """Pictures in memory, of which one cannot be read."""

    def __init__(self, reader: Any, bad: int) -> None:
        self.reader, self.bad = reader, bad

    def __getattr__(self, name: str) -> Any:
        return getattr(self.reader, name)

    def read(self, row: int, channels: int) -> torch.Tensor:
        if row == self.bad:
            raise DataError(f"image[{row}]: cannot be read")
        return self.reader.read(row, channels)


def test_bad_pictures_with_objects_are_left_out_and_named_also_as_lenders() -> None:
    pictures = annotated()
    spoilt = dataclasses.replace(pictures, reader=Unreadable(pictures.reader, 2))
    config = dataclasses.replace(SHAKEN, paste=1.0)
    augment = ObjectAugment(config, FOUND)
    lenders = {seed: [augment.partner(sample_seed(seed, 0, index), 9) for index in range(9)] for seed in range(20)}
    seed = next(seed for seed, places in lenders.items() if 2 in places[:2] + places[3:])
    view = AnnotatedView(spoilt, augment, seed, max_bad=1)
    batch = view.__getitems__([(0, index) for index in range(9)])
    assert isinstance(batch, Batch)
    assert 2 not in batch.indices.tolist()
    assert len(batch.images) == len(batch.labels.counts) == len(batch.indices) == 9 - len(batch.bad)
    assert set(batch.bad) == {"image[2]: cannot be read"}
    assert len(batch.bad) > 1  # another picture borrows from it
    strict = train_loader(spoilt, ObjectAugment(SHAKEN, FOUND), batch=9, seed=0, workers=0)
    with pytest.raises(DataError, match=r"^image\[2\]: cannot be read$"):
        list(strict)


def test_what_goes_together() -> None:
    plain = annotated(masks=False)
    with pytest.raises(ConfigError, match=r"augment paste is 0\.5, but the data has boxes without masks"):
        train_loader(plain, ObjectAugment(SHAKEN, FOUND), batch=3, seed=0)
    with pytest.raises(TypeError, match="objects go with ObjectAugment"):
        train_loader(plain, JointAugment(AugmentConfig(), FOUND), batch=3, seed=0)


def test_errors_survive_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DataError("a: b")))  # noqa: S301 - our own bytes
    assert isinstance(error, DataError)
    assert str(error) == "a: b"


def test_labels_and_indices_are_int64(scans: Images) -> None:
    batch = next(iter(eval_loader(scans, SCAN, batch=4)))
    assert (batch.labels.dtype, batch.indices.dtype) == (torch.int64, torch.int64)
    assert isinstance(scans.labels, np.ndarray)


def test_repeated_augmentation_shows_a_part_of_the_images_in_several_variants(photos: Images) -> None:
    """Three a batch of nine, neighbours never of one image, each variant drawn for itself."""
    keys = [key for batch in EpochBatches(36, 9, 0, epoch=5, repeats=3) for key in batch]
    order = epoch_order(36, 0, 5).tolist()
    for number in range(4):
        batch = keys[9 * number : 9 * number + 9]
        assert [index for _, index in batch] == order[3 * number : 3 * number + 3] * 3
        assert len(set(batch)) == 9
    assert {epoch for epoch, _ in keys} == {5, 5 + 2**32, 5 + 2**33}
    assert list(EpochBatches(36, 9, 0, repeats=1)) == list(EpochBatches(36, 9, 0))
    assert [len(batch) for batch in EpochBatches(5, 9, 0, repeats=3)] == [5]

    config = dataclasses.replace(LIVELY, repeats=2)
    loader = train_loader(photos, build_augment(config, PHOTO), batch=4, seed=3, workers=0)
    batch = next(iter(loader))
    assert batch.indices[:2].tolist() == batch.indices[2:].tolist()
    assert not torch.equal(batch.images[:2], batch.images[2:])
    lone = TrainView(photos, build_augment(config, PHOTO), seed=3)
    assert torch.equal(lone[2**32, int(batch.indices[2])], batch.images[2])


def test_a_reader_that_hangs_is_an_error_that_says_what_it_waited_for() -> None:
    loader = Loader(Sleeper(), [[0, 1], [2, 3], [4, 5]], workers=1, timeout=5.0)
    batches = iter(loader)
    assert next(batches).indices.tolist() == [0, 1]
    with pytest.raises(DataError, match=r"hangs: timed out after 5.*awaited was the batch of c\.png and 1 more"):
        next(batches)
    for reader in loader._loader._iterator._workers:  # type: ignore[union-attr]
        reader.kill()
