"""`train` end to end where every pixel has a class: it learns, resumes to the bit, and stops at bad masks."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

import swindow
from swindow.config import from_dict, read_toml
from swindow.data.augment import AugmentConfig
from swindow.data.masks import MaskConfig
from swindow.errors import ConfigError, DataError, ShapeError
from swindow.model import model_config
from swindow.optim import OptimConfig, Optimizer, schedule
from swindow.progress import Silent
from swindow.recipes import RECIPES, SEGMENT, Facts, configure
from swindow.settings import TrainConfig
from swindow.sliding import Views
from swindow.training import train
from test_training import contents, newest

TINY = {"dim": 12, "depths": (1, 1), "num_heads": (1, 2), "window": 4, "patch": 2, "decoder_depths": (1,)}
UPERNET = {**{name: value for name, value in TINY.items() if name != "decoder_depths"}, "decoder_width": 8}


def paint(folder, count=10, side=24, *, first=0):
    """Grey pictures with a bright square each: class 1 before class 0; two pictures a patient."""
    images, masks = folder / "images", folder / "masks"
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(exist_ok=True)
    for number in range(first, first + count):
        random = np.random.default_rng(number)
        mask = np.zeros((side, side), np.uint8)
        top, left = random.integers(2, side - 12, 2)
        mask[top : top + 10, left : left + 10] = 1
        picture = (mask * 120 + 60 + random.normal(0, 10, mask.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(picture).save(images / f"p{number // 2}-{number % 2}.png")
        Image.fromarray(mask).save(masks / f"p{number // 2}-{number % 2}.png")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    paint(folder / "train", 16)
    paint(folder / "val", 4, first=16)
    (folder / "classes.txt").write_text("0 background 0 0 0\n1 square 200 80 20\n")
    return folder


@pytest.fixture
def config(pictures, tmp_path):
    return TrainConfig(
        data=str(pictures),
        out=str(tmp_path / "run"),
        model="unet_swin_nano",
        fields=TINY,
        size=24,
        channels=1,
        fit="native",
        epochs=2,
        batch=4,
        label_smoothing=0.0,
        device="cpu",
        precision="fp32",
        workers=0,
        tensorboard=False,
        report=False,
        masks=MaskConfig(case="^p[0-9]+"),
        optim=OptimConfig(name="muon", ema=0.9, warmup=0.1),
        augment=AugmentConfig(crop="scale", scale=(0.8, 1.25), hflip=0.5, affine=(10.0, 0.0, 0.0)),
    )


def run(config, **changes):
    resume = changes.pop("resume", False)
    return train(dataclasses.replace(config, **changes), resume=resume, progress=Silent())


def test_it_learns_where_the_squares_are_and_leaves_a_complete_run_folder(config, tmp_path):
    result = run(config, epochs=15, eval_every=5, report=True, optim=OptimConfig(name="adamw", lr=5e-3))
    folder = tmp_path / "run"
    assert result.stopped_by == "finished"
    assert result.evaluation.score_name == "mean Dice"
    assert result.evaluation.score > 0.9
    assert len(result.evaluation.per_case) == 2  # two pictures a patient
    facts = json.loads((folder / "result.json").read_text())
    assert facts["mean_dice"] == facts["score"] == result.evaluation.score
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(line["mean_dice"] for line in lines if line["kind"] == "val") > 0.9
    assert {"cross_entropy", "dice", "accuracy"} <= lines[0].keys()
    page = (folder / "report.html").read_text()
    assert page.count("<img") >= 8
    assert len(list((folder / "progress").glob("0*"))) == 3  # an evaluation each
    model = swindow.load(folder)
    assert model.classes == ("background", "square")
    assert model.colours == ((0, 0, 0), (200, 80, 20))
    assert model.preprocess.fit == "native"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optim": OptimConfig(name="sgd", lr=0.05, accumulate=2, decay="poly", clip=1.0)},
        {"model": "upernet_swin_nano", "fields": UPERNET},
    ],
    ids=["muon-ema", "sgd-accumulate", "batch-norm"],
)
def test_two_steps_and_two_more_are_four_to_the_bit(config, tmp_path, changes):
    whole = run(config, out=str(tmp_path / "whole"), **changes)
    run(config, out=str(tmp_path / "parts"), max_steps=max(whole.step // 2, 1), **changes)
    run(config, out=str(tmp_path / "parts"), resume=True, **changes)
    assert contents(newest(tmp_path / "whole")) == contents(newest(tmp_path / "parts"))


def test_bf16_and_checkpointing_train_too(config):
    result = run(config, precision="bf16", checkpointing=True, max_steps=3)
    assert result.step == 3
    assert np.isfinite(result.evaluation.loss)


def test_a_run_of_so_many_steps_ends_there(config):
    result = run(config, steps=5, epochs=1)
    assert (result.step, result.stopped_by) == (5, "finished")
    assert run(config, steps=5, epochs=1, resume=True).step == 5


def test_the_config_of_a_run_runs_again(config, tmp_path):
    run(config, max_steps=1, views=Views(overlap=0.5), masks=MaskConfig(case="^p[0-9]+", intensity=(0.0, 200.0)))
    again = from_dict(TrainConfig, read_toml(tmp_path / "run" / "config.toml"))
    assert again.views.overlap == 0.5
    assert swindow.load(tmp_path / "run").preprocess.intensity == (0.0, 200.0)


def test_one_image_a_batch_and_batch_norm_is_refused_in_words(config):
    with pytest.raises(ShapeError, match="batch of 2"):
        run(config, model="upernet_swin_nano", fields=UPERNET, batch=1)


@pytest.mark.parametrize(
    ("model", "words"), [("swin_nano", "upernet_… and unet_…"), ("resnet_18", "name every pixel's class")]
)
def test_a_classifier_is_not_trained_on_masks(config, model, words):
    with pytest.raises(ConfigError, match=words):
        run(config, model=model, fields={})


def test_a_bad_mask_is_found_before_the_first_step(config, tmp_path):
    paint(tmp_path / "bad" / "train", 6)
    paint(tmp_path / "bad" / "val", 2, first=6)
    (tmp_path / "bad" / "classes.txt").write_text("0 background\n1 square\n")
    Image.fromarray(np.full((24, 24), 7, np.uint8)).save(tmp_path / "bad" / "train" / "masks" / "p0-0.png")
    with pytest.raises(DataError, match=r"p0-0\.png"):
        run(config, data=str(tmp_path / "bad"))
    assert not (tmp_path / "run" / "steps").exists()


@pytest.mark.parametrize("name", SEGMENT)
def test_recipes_are_complete_and_their_models_can_be_built(name, pictures):
    facts = Facts(images=40, classes=2, channels=1, side=100, longest=120, task="segment", background=True)
    recipe = RECIPES[name](facts)
    assert recipe.recipe == name
    with torch.device("meta"):
        swindow.build(recipe.model, num_classes=2, in_channels=1, **recipe.fields)
    assert configure(str(pictures), recipe=name).recipe == name


def test_the_published_recipes_are_as_published():
    """Liu et al. 2021, appendix A2; Cao et al. 2021, section 4.2, and its code."""
    facts = Facts(images=20_210, classes=150, channels=3, side=512, longest=683, task="segment")
    upernet = RECIPES["upernet-ade20k"](facts)
    assert (upernet.model, upernet.size, upernet.batch, upernet.steps) == ("upernet_swin_tiny", 512, 16, 160_000)
    assert (upernet.optim.name, upernet.optim.lr, upernet.optim.weight_decay) == ("adamw", 6e-5, 0.01)
    assert upernet.drop_path == 0.3
    rates = [schedule(step, 160_000, upernet.optim) for step in range(160_000)]
    assert rates.index(max(rates)) == 1_500
    assert rates[1_500::39_625] == pytest.approx([1, 0.75, 0.5, 0.25])
    assert rates[:1_500] == pytest.approx([(step + 1) / 1_501 for step in range(1_500)])
    unet = RECIPES["swin-unet-synapse"](dataclasses.replace(facts, images=2_211, classes=9, channels=1))
    assert (unet.model, unet.size, unet.batch, unet.epochs) == ("swin_unet", 224, 24, 150)
    assert (unet.optim.name, unet.optim.lr, unet.optim.momentum, unet.optim.weight_decay) == ("sgd", 0.05, 0.9, 1e-4)
    assert [schedule(step, 100, unet.optim) for step in (0, 50)] == pytest.approx([1, 0.5**0.9])
    head = model_config(unet.model, **unet.fields).head
    assert (head.cross_entropy, head.dice) == (0.4, 0.6)
    with torch.device("meta"):  # the decoder's rates are those of the encoder's blocks on the same maps
        model = swindow.build(unet.model, **unet.fields)
    encoder = [[block.drop_path.rate for block in stage.blocks] for stage in model.backbone.stages]
    assert [[block.drop_path.rate for block in stage.blocks] for stage in model.head.stages] == [
        pytest.approx(rates) for rates in encoder[2::-1]
    ]


@pytest.mark.parametrize("name", ["upernet_swin_nano", "swin_unet", "upernet_resnet_18"])
def test_norms_biases_and_tables_of_decoders_do_not_decay(name):
    with torch.device("meta"):
        model = swindow.build(name, num_classes=2)
    groups = Optimizer(model, OptimConfig(weight_decay=0.01)).groups()
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    for owner, module in model.named_modules():
        for part, parameter in module.named_parameters(recurse=False):
            spared = "Norm" in type(module).__name__ or part in ("bias", "table") or "position" in owner
            assert (decays[id(parameter)] == 0) == spared, f"{owner}.{part}"


def test_the_data_picks_the_recipe(pictures, tmp_path):
    assert configure(str(pictures)).recipe == "medical-slices"
    paint(tmp_path / "photos", 6)
    (tmp_path / "photos" / "classes.txt").write_text("0 meadow\n1 roof\n")
    assert configure(str(tmp_path / "photos")).recipe == "few-masks"
    with pytest.raises(ConfigError, match="few-photos is not for data to segment"):
        configure(str(pictures), recipe="few-photos")


def test_a_segmenter_starts_from_a_classifier_and_from_a_segmenter(config, tmp_path):
    classifier = swindow.build("swin_nano", num_classes=4, in_channels=1, **{n: TINY[n] for n in list(TINY)[:-1]})
    swindow.save(classifier, tmp_path / "classifier.safetensors")
    run(config, weights=str(tmp_path / "classifier.safetensors"), max_steps=1)
    run(config, weights=str(tmp_path / "run"), out=str(tmp_path / "second"), max_steps=1)
    assert configure(config.data, weights=str(tmp_path / "run")).fields["dim"] == 12
    classifier = str(tmp_path / "classifier.safetensors")
    assert configure(config.data, weights=classifier).model == "upernet_swin_nano"
    assert configure(config.data, weights=classifier, recipe="upernet-ade20k").model == "upernet_swin_nano"
    assert configure(config.data, weights=classifier, recipe="swin-unet-synapse").model == "swin_unet"
