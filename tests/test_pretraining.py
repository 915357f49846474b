"""Pretraining without labels as a person meets it: pretrain, look at it, fine-tune from it."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

import swindow
from pictures import HUES, class_folders, picture
from swindow import cli
from swindow.checkpoints import load_weights
from swindow.errors import ConfigError
from swindow.optim import OptimConfig
from swindow.progress import Silent
from swindow.recipes import configure
from swindow.reporting import read_progress
from swindow.settings import TrainConfig
from swindow.training import train

SHAPE = {"patch": 2, "window": 4, "dim": 12, "depths": (1, 1), "num_heads": (2, 4), "mask_patch": 4}


def words_of(fields):
    return [str(word) for name, value in fields.items() for word in (name, value)]


def call(*words):
    """Exit code of a command run in this process."""
    with pytest.raises(SystemExit) as caught:
        cli.main([str(word) for word in words])
    return caught.value.code


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures in one flat folder, none of them labelled."""
    folder = tmp_path_factory.mktemp("photos")
    for number, hue in enumerate(HUES.values()):
        for index in range(12):
            picture(hue, 100 * number + index).save(folder / f"{number}-{index:03}.png")
    return folder


@pytest.fixture(scope="module")
def config(photos):
    return TrainConfig(
        data=str(photos),
        task="pretrain",
        model="simmim_swin_micro",
        fields=SHAPE,
        size=16,
        crop_ratio=1.0,
        epochs=3,
        batch=8,
        drop_path=0.0,
        device="cpu",
        precision="fp32",
        workers=0,
        val_fraction=0.25,
        tensorboard=False,
        optim=OptimConfig(lr=3e-3, ema=0.9, warmup=0.1),
    )


@pytest.fixture(scope="module")
def pretrained(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "pre"
    return train(dataclasses.replace(config, out=str(run)), progress=Silent())


def pixels(path):
    with Image.open(path) as file:
        return torch.from_numpy(np.array(file.convert("RGB"))).flatten(0, 1)


def state_of(run):
    return swindow.load(run).state_dict()


# -- pretraining -------------------------------------------------------------------------------------------------------


def test_it_learns_to_paint_and_says_how_well(pretrained):
    result = json.loads((pretrained.run / "result.json").read_text())
    assert (result["score_name"], result["split"]) == ("explained", "val")
    assert result["score"] == result["explained"] == pretrained.evaluation.score
    assert -1 < result["explained"] < 1
    assert result["psnr"] > 0
    rows = [json.loads(line) for line in (pretrained.run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["kind"] == "val"]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    model = swindow.load(pretrained.run)
    assert (model.task, model.config.name, model.head.config.mask_patch) == ("pretrain", "simmim_swin_micro", 4)


def test_the_report_shows_what_it_paints(pretrained):
    page = pretrained.report.read_text(encoding="utf-8")
    for words in ("What it paints", "what the model sees", "The same images over time", "explained on val", "PSNR"):
        assert words in page, words
    assert page.count("data:image/") >= 3 * 9 + 8 * 4
    courses = read_progress(pretrained.run)
    assert len(courses) == 8
    assert all(len(course.answers) == 3 for course in courses)


def test_hidden_parts_are_covered_and_the_rest_of_a_painting_is_the_image(pretrained):
    folder = pretrained.run / "progress"
    image, seen = pixels(folder / "image" / "0.png"), pixels(folder / "truth" / "0.png")
    covered = (seen == 214).all(1)
    assert covered.double().mean() == pytest.approx(10 / 16, abs=0.01)
    assert torch.equal(seen[~covered], image[~covered])
    last = max(path for path in folder.iterdir() if path.name.isdecimal())
    painted = pixels(last / "0.png")
    assert torch.equal(painted[~covered], image[~covered])
    assert not torch.equal(painted[covered], image[covered])


def test_workers_and_a_stop_in_between_change_nothing(config, tmp_path):
    whole = dataclasses.replace(config, out=str(tmp_path / "whole"), epochs=2, report=False)
    first = train(whole, progress=Silent())
    parts = dataclasses.replace(whole, out=str(tmp_path / "parts"), workers=2)
    stopped = train(dataclasses.replace(parts, max_steps=4), progress=Silent())
    assert stopped.stopped_by == "max_steps"
    second = train(parts, resume=True, progress=Silent())
    assert second.step == first.step
    one, other = state_of(first.run), state_of(second.run)
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert first.evaluation.l1 == second.evaluation.l1


def test_evaluation_hides_the_same_parts_every_time(pretrained, photos):
    how = {"split": "val", "device": "cpu", "precision": "fp32"}
    first, second = (swindow.evaluate(pretrained.run, batch=batch, **how) for batch in (3, 64))
    assert [score.name for score in first.per_image] == [score.name for score in second.per_image]
    assert first.l1 == pytest.approx(second.l1, rel=1e-5)
    assert first.l1 == pytest.approx(pretrained.evaluation.l1, rel=1e-5)


# -- commands ----------------------------------------------------------------------------------------------------------


def test_eval_writes_pictures_and_tables(pretrained, tmp_path, capsys):
    assert call("eval", pretrained.run, "--device", "cpu", "--out", tmp_path / "judged") == 0
    figures = r"val: -?[\d.]+% of a flat painting's error explained on 9 images \(L1 [\d.]+ of [\d.]+, [\d.]+ dB\)"
    assert re.search(figures, capsys.readouterr().out)
    names = {path.name for path in (tmp_path / "judged").iterdir()}
    assert names == {"evaluation.html", "figures.json", "per_image.csv", "sheet.png"}
    header, *rows = (tmp_path / "judged" / "per_image.csv").read_text().splitlines()
    assert header == "name,explained,l1,flat,psnr"
    assert len(rows) == 9


def test_predict_and_explain_refuse_in_one_line_and_info_counts(pretrained, photos, capsys):
    image = next(photos.iterdir())
    for words in (["predict", pretrained.run, image], ["explain", pretrained.run, image]):
        assert call(*words) == 2
        said = capsys.readouterr().err.strip()
        assert len(said.splitlines()) == 1
        assert "simmim_swin_micro is pretrained" in said
        assert "swindow train DATA --weights RUN" in said
    assert call("info", pretrained.run) == 0
    total = sum(x.numel() for x in swindow.load(pretrained.run).parameters())
    assert f"{total:,} parameters; for one 16x16 image" in capsys.readouterr().out


def test_the_command_pretrains_a_folder_by_the_usual_recipe(photos, tmp_path, capsys):
    shape = ["--fields", *words_of({"patch": 4, "window": 2, "dim": 12, "mask_patch": 8}), "--size", "32"]
    how = ["--epochs", "1", "--batch", "8", "--device", "cpu", "--workers", "0", "--no-tensorboard"]
    assert call("train", photos, "--task", "pretrain", *shape, *how, "--out", tmp_path / "run") == 0
    assert re.search(r"run: explained -?[\d.]+%", capsys.readouterr().out)
    assert (tmp_path / "run" / "report.html").exists()


def test_what_goes_with_labels_is_refused(config, tmp_path):
    for changes, message in (
        ({"augment": {"mixup": 0.2}}, "pretraining learns from images alone; leave out augment.mixup"),
        ({"teacher": "somebody"}, "pretraining learns from images alone; leave out --teacher"),
        ({"distill": "hard"}, "pretraining learns from images alone; leave out distill and distillation"),
        ({"model": "swin_micro"}, "swin_micro is to classify and .* is data to pretrain"),
        ({"size": 18}, "images of 18x18 pixels are not whole cells of mask_patch 4"),
    ):
        changes = dict(changes)
        if "augment" in changes:
            changes["augment"] = dataclasses.replace(config.augment, **changes["augment"])
        if changes.get("model") == "swin_micro":
            changes["fields"] = {"patch": 2}
        with pytest.raises(ConfigError, match=message):
            train(dataclasses.replace(config, out=str(tmp_path / "run"), **changes), progress=Silent())


# -- fine-tuning -------------------------------------------------------------------------------------------------------


def test_a_classifier_starts_from_it_without_its_token_and_decoder(pretrained, tmp_path, capsys):
    data = class_folders(tmp_path / "data")
    settings = configure(str(data), weights=str(pretrained.run))
    assert (settings.model, settings.size) == ("swin_micro", 16)
    assert settings.fields == {"dim": 12, "depths": (1, 1), "num_heads": (2, 4)}  # the others are the variant's own
    assert settings.optim.layer_decay < 1
    small = ["--epochs", "1", "--batch", "8", "--device", "cpu", "--workers", "0", "--no-tensorboard", "--no-report"]
    assert call("train", data, "--weights", pretrained.run, *small, "--out", tmp_path / "fine") == 0
    said = capsys.readouterr()
    said = said.out + said.err
    assert "the head is new; the mask token and decoder of pretraining stay behind" in said
    for name in ("head.mask_token", "head.decoder.weight", "head.decoder.bias"):
        assert name in said
    model = swindow.load(tmp_path / "fine")
    assert (model.config.name, model.task) == ("swin_micro", "classify")


def test_only_the_backbone_is_taken_and_all_of_it(pretrained):
    theirs = state_of(pretrained.run)
    shape = {name: value for name, value in SHAPE.items() if name != "mask_patch"}
    model = swindow.build("swin_micro", num_classes=3, **shape)
    fresh = model.head.linear.weight.clone()
    report = load_weights(model, pretrained.run, head="reset", say=None)
    assert all(torch.equal(x, theirs[f"backbone.{name}"]) for name, x in model.backbone.state_dict().items())
    assert torch.equal(model.head.linear.weight, fresh)
    assert sorted(report.dropped) == ["head.decoder.bias", "head.decoder.weight", "head.mask_token"]


def test_other_windows_and_sizes_are_resampled(pretrained):
    shape = {name: value for name, value in SHAPE.items() if name != "mask_patch"}
    model = swindow.build("swin_micro", num_classes=3, **shape | {"window": 5})
    report = load_weights(model, pretrained.run, head="reset", say=None)
    assert any("position_bias.table from 49×" in line for line in report.resized)


@pytest.mark.parametrize("name", ["upernet_swin_micro", "mask_rcnn_swin_micro"])
def test_segmenters_and_detectors_start_from_it_too(pretrained, name):
    shape = {field: value for field, value in SHAPE.items() if field != "mask_patch"}
    model = swindow.build(name, num_classes=3, **shape)
    load_weights(model, pretrained.run, head="reset", say=None)
    theirs = state_of(pretrained.run)
    stages = [key for key in model.backbone.state_dict() if key.startswith("stages.")]
    assert all(torch.equal(model.backbone.state_dict()[key], theirs[f"backbone.{key}"]) for key in stages)


def test_it_can_be_pretrained_further(pretrained, config, tmp_path):
    settings = configure(str(config.data), task="pretrain", weights=str(pretrained.run))
    assert settings.model == "simmim_swin_micro"
    assert settings.fields["mask_patch"] == 4
    more = dataclasses.replace(config, out=str(tmp_path / "more"), weights=str(pretrained.run), epochs=1, report=False)
    assert train(more, progress=Silent()).evaluation.l1 < pretrained.evaluation.l1 * 1.2
