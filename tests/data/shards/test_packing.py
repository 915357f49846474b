"""Shards that we write: the same bytes twice, read by others, whole or refused."""

import gc
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import hostile
from swindow.cli.data import data_command
from swindow.data import check, duplicates_across, open_data, split_changes, split_record
from swindow.data.augment import AugmentConfig, build_augment
from swindow.data.loading import eval_loader, train_loader
from swindow.data.shards.packing import PackConfig, PackReport, pack
from swindow.errors import ConfigError, DataError
from swindow.preprocess import Preprocess
from swindow.progress import Silent

PREPROCESS = Preprocess(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture
def folder(tmp_path: Path, classes: Any) -> Path:
    for split, count in (("train", 20), ("val", 6)):
        classes(tmp_path / "in" / split, {"ant": count, "bee": count, "cat": count})
    return tmp_path / "in"


def packed(source: Path, out: str | Path, **how: Any) -> PackReport:
    config = PackConfig(**{"shard_mb": 0.02, **how})
    return pack(open_data(source, for_training=False), out, config, progress=Silent())


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_pixels_labels_and_splits_come_back(folder: Path, tmp_path: Path, form: str) -> None:
    report = packed(folder, tmp_path / "out", format=form)
    assert report.samples == {"train": 60, "val": 18}
    assert report.shards["train"] > 2
    source, plain = open_data(tmp_path / "out"), open_data(folder)
    assert source.kind == f"{form} shards"
    assert source.classes == plain.classes
    assert source.split_note == "val as found"
    for split in ("train", "val"):
        found, given = source.split(split), plain.split(split)
        before = sorted((given.classes[given.labels[i]], given.read(i).numpy().tobytes()) for i in range(len(given)))
        after = sorted((found.classes[found.labels[i]], found.read(i).numpy().tobytes()) for i in range(len(found)))
        assert before == after


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_the_same_input_gives_the_same_bytes(folder: Path, tmp_path: Path, form: str) -> None:
    packed(folder, tmp_path / "one", format=form)
    packed(folder, tmp_path / "two", format=form)
    packed(folder, tmp_path / "three", format=form, seed=1)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    assert hashes(tmp_path / "one") != hashes(tmp_path / "three")


def test_files_keep_their_bytes(folder: Path, tmp_path: Path) -> None:
    packed(folder, tmp_path / "out")
    images = open_data(tmp_path / "out").split("train")
    files = {path.read_bytes() for path in (folder / "train").rglob("*.png")}
    assert set(images.sources(range(len(images)))) == files


def test_size_makes_smaller_jpegs(folder: Path, tmp_path: Path) -> None:
    packed(folder, tmp_path / "out", size=6, quality=80)
    data = open_data(tmp_path / "out").split("train").sources([0])[0]
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == ("JPEG", (8, 6))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its files to the collector
@pytest.mark.filterwarnings("ignore:Exception ignored in.*FileIO:pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_what_we_write(folder: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed; it is part of the test group")
    packed(folder, tmp_path / "out")
    shards = sorted(str(path) for path in (tmp_path / "out").glob("train-*.tar"))
    rows = list(webdataset.WebDataset(shards, shardshuffle=False).decode().to_tuple("png", "cls"))
    assert len(rows) == 60
    images = open_data(tmp_path / "out").split("train")
    assert [label for _, label in rows] == images.labels.tolist()
    gc.collect()  # here, where its warnings are expected


def test_parquet_has_hugging_face_s_columns(folder: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    packed(folder, tmp_path / "out", format="parquet")
    file = parquet.ParquetFile(sorted((tmp_path / "out").glob("train-*.parquet"))[0])
    known = json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"]
    assert known["label"] == {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}
    assert file.read().column("image")[0].as_py().keys() == {"bytes", "path"}


def test_an_interrupted_pack_is_never_taken_for_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from swindow.data.shards import packing

    packed(folder, tmp_path / "whole")
    write, out = packing._write_tar, tmp_path / "out"

    def stop(path: Path, samples: Any, classes: Any) -> Any:
        if len(list(out.glob("*.tar"))) == 2:
            raise KeyboardInterrupt
        return write(path, samples, classes)

    monkeypatch.setattr(packing, "_write_tar", stop)
    with pytest.raises(KeyboardInterrupt):
        packed(folder, out)
    monkeypatch.undo()
    with pytest.raises(DataError, match="packing was interrupted"):
        open_data(out)
    with pytest.raises(ConfigError, match="another pack was interrupted"):
        packed(folder, out, seed=5)
    packed(folder, out)
    assert hashes(out) == hashes(tmp_path / "whole")


def test_a_place_that_is_not_empty_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("here")
    with pytest.raises(ConfigError, match=r"not empty \(it has mine.txt\)"):
        packed(folder, tmp_path / "out")


def test_unreadable_images_stop_it_or_are_listed(folder: Path, tmp_path: Path) -> None:
    (folder / "train" / "ant" / "3.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"ant/3\.png"):
        packed(folder, tmp_path / "out")
    report = packed(folder, tmp_path / "other", max_bad=1)
    assert report.samples["train"] == 59
    assert "ant/3.png" in report.text()


def test_damage_is_found_by_check_and_before_training(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert data_command(["pack", str(folder), str(tmp_path / "out"), "--shard-mb", "0.02"]) == 0
    assert data_command(["check", str(tmp_path / "out")]) == 0
    shard = tmp_path / "out" / "train-000001.tar"
    whole = shard.read_bytes()
    images = open_data(tmp_path / "out").split("train")
    begins = next(images.encoded.offset[row] for row in range(60) if images.encoded.shard[row] == 1)
    shard.write_bytes(whole[: begins + 60] + bytes([whole[begins + 60] ^ 1]) + whole[begins + 61 :])
    report = check(tmp_path / "out")
    assert {"damaged-shard", "unreadable"} <= set(report.counts)
    shard.write_bytes(whole[:-512])
    with pytest.raises(DataError, match=r"train-000001\.tar: has .* bytes, by the index"):
        open_data(tmp_path / "out")
    shard.unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar: is not there"):
        open_data(tmp_path / "out")


def test_the_same_picture_in_two_splits_is_found_by_the_index(folder: Path, tmp_path: Path) -> None:
    (folder / "val" / "ant" / "0.png").write_bytes((folder / "train" / "ant" / "5.png").read_bytes())
    packed(folder, tmp_path / "out")
    assert len(duplicates_across(open_data(tmp_path / "out"))) == 1
    assert check(tmp_path / "out").counts == {"duplicate-across-splits": 1}


def test_a_validation_split_is_held_out_and_recorded(tmp_path: Path, classes: Any) -> None:
    classes(tmp_path / "in", {"ant": 20, "bee": 20})
    packed(tmp_path / "in", tmp_path / "out")
    source = open_data(tmp_path / "out", seed=1, val_fraction=0.2)
    assert (len(source.split("train")), len(source.split("val"))) == (32, 8)
    record = json.loads(json.dumps(split_record(source)))
    again = open_data(tmp_path / "out", seed=9, split_record=record)
    assert split_changes(again, record) == []
    assert all(name.endswith(".png") and ".tar/" in name for name in record["held_out"]["val"])


@pytest.mark.parametrize("form", ["tar", "parquet"])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_any_number_of_readers_and_resume_mid_epoch(
    folder: Path, tmp_path: Path, form: str, workers: int
) -> None:
    packed(folder, tmp_path / "out", format=form)
    source = open_data(tmp_path / "out")
    augment = build_augment(AugmentConfig(crop="resized", hflip=0.5), PREPROCESS)
    how: dict[str, Any] = {"batch": 7, "seed": 2, "window": 15}
    alone = list(train_loader(source.split("train"), augment, workers=0, **how))
    loader = train_loader(source.split("train"), augment, workers=workers, **how)
    loader.batch_sampler.start(0, 3)
    rest = list(loader)
    assert len(rest) == len(alone) - 3
    for here, there in zip(rest, alone[3:], strict=True):
        assert here.indices.tolist() == there.indices.tolist()
        assert (here.images == there.images).all()
        assert (here.labels == there.labels).all()
    seen = np.concatenate([batch.indices for batch in alone])
    assert len(set(seen.tolist())) == len(seen) == 56
    judged = list(eval_loader(source.split("val"), PREPROCESS, batch=5, workers=0))
    assert np.concatenate([batch.indices for batch in judged]).tolist() == list(range(18))


def test_masks_and_boxes_are_refused(folder: Path, tmp_path: Path) -> None:
    packed(folder, tmp_path / "out")
    for task in ("segment", "detect"):
        with pytest.raises(DataError, match="a label each"):
            open_data(tmp_path / "out", task=task)  # type: ignore[arg-type]


def test_hugging_face_s_parquet_is_read(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    pictures = [hostile.encode(hostile.picture(index, height=12, width=16), "JPEG") for index in range(24)]
    (tmp_path / "data").mkdir()
    for split, part in (("train", range(16)), ("validation", range(16, 24))):
        rows = {
            "image": [{"bytes": pictures[index], "path": f"{index}.jpg"} for index in part],
            "label": [index % 2 for index in part],
        }
        table = arrow.table(rows)
        features = {"image": {"_type": "Image"}, "label": {"names": ["day", "night"], "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        parquet.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet", row_group_size=5)
    source = open_data(tmp_path)
    assert source.classes == ("day", "night")
    assert {name: len(images) for name, images in source.splits().items()} == {"train": 16, "val": 8}
    assert source.split("val").sources(range(8)) == pictures[16:]
    assert source.split("train").names[7].endswith("train-00000-of-00001.parquet[7]")


def test_a_parquet_of_plain_bytes_and_names_is_read(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    picture = hostile.encode(hostile.picture(0, height=12, width=16), "PNG")
    table = arrow.table({"bytes": [picture, picture, None, b"x"], "label": ["a", "b", "a", "b"]})
    parquet.write_table(table, tmp_path / "some.parquet")
    images = open_data(tmp_path / "some.parquet", for_training=False).split("train")
    assert images.classes == ("a", "b")
    assert images.read(1).shape == (3, 12, 16)
    with pytest.raises(DataError, match=r"some\.parquet\[2\]: has no bytes"):
        images.read(2)
    with pytest.raises(DataError, match=r"some\.parquet\[3\]: is damaged"):
        images.read(3)
