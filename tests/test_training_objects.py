"""`train` end to end where pictures have objects: it learns, resumes to the bit, and stops at bad annotations."""

import contextlib
import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import swindow
from swindow import cli
from swindow.config import from_dict, read_toml
from swindow.data.annotations import ObjectConfig
from swindow.data.augment import AugmentConfig
from swindow.errors import ConfigError, DataError, UnknownName
from swindow.model import model_config
from swindow.optim import OptimConfig, schedule
from swindow.progress import Silent
from swindow.recipes import DETECT, RECIPES, Facts, configure
from swindow.settings import TrainConfig
from swindow.training import train
from test_training import contents, newest

REGIONS = {"regions.candidates": (64, 64), "regions.proposals": (32, 32), "regions.scales": (4.0,)}
RCNN = {"pyramid_width": 16, "box_width": 32, "mask_width": 8, "mask_convs": 1, "samples": 16, **REGIONS}
RESNET = {"depths": (1, 1), "width": 16, "block": "basic"}
SWIN = {"dim": 16, "depths": (1, 1), "num_heads": (1, 2), "window": 4, "patch": 4}
_FLAT = {"width": 16, "block": "basic", "pyramid_width": 16, "box_width": 32, "mask_width": 8, "mask_convs": 1}
DETR = {"transformer_width": 16, "transformer_heads": 2, "feed_forward": 16, "encoder_layers": 1, "decoder_layers": 1}


def paint(folder, split, count, *, first=0):
    """Dark pictures of two sizes with up to three bright squares and bars; COCO JSON with polygons."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(first, first + count):
        random = np.random.default_rng(number)
        height, width = (48, 64) if number % 3 else (64, 48)
        pixels = random.normal(50, 8, (height, width, 3))
        for place in random.permutation(4)[: number % 4]:
            kind = int(random.integers(2))
            wide, high = (16, 16) if kind == 0 else (22, 8)
            x, y = np.asarray((place % 2, place // 2)) * (width // 2, height // 2) + random.integers(0, 2, 2)
            pixels[y : y + high, x : x + wide] += (150, 20, 20) if kind == 0 else (20, 150, 20)
            corners = [x, y, x + wide, y, x + wide, y + high, x, y + high]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 3 + 4 * kind,
                    "bbox": [int(x), int(y), wide, high],
                    "area": wide * high,
                    "iscrowd": 0,
                    "segmentation": [[int(value) for value in corners]],
                }
            )
        name = f"{split}/p{number:02}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
    categories = [{"id": 3, "name": "square"}, {"id": 7, "name": "bar"}]
    (folder / "annotations").mkdir(exist_ok=True)
    path = folder / "annotations" / f"{split}.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects")
    paint(folder, "train", 16)
    paint(folder, "val", 6, first=16)
    return folder


@pytest.fixture
def config(pictures, tmp_path):
    return TrainConfig(
        data=str(pictures),
        out=str(tmp_path / "run"),
        model="mask_rcnn_resnet_18",
        fields={**RESNET, **RCNN},
        size=48,
        fit="within",
        epochs=2,
        batch=4,
        label_smoothing=0.0,
        device="cpu",
        precision="fp32",
        workers=0,
        tensorboard=False,
        report=False,
        optim=OptimConfig(ema=0.9, warmup=0.1, clip=5.0),
        augment=AugmentConfig(crop="sides", sides=(40, 48), hflip=0.5),
    )


def run(config, **changes):
    resume = changes.pop("resume", False)
    return train(dataclasses.replace(config, **changes), resume=resume, progress=Silent())


def test_it_learns_where_things_are_and_leaves_a_complete_run_folder(config, tmp_path):
    optim = OptimConfig(lr=4e-3, warmup=0.1, clip=5.0)
    result = run(config, epochs=50, eval_every=25, report=True, optim=optim, augment=AugmentConfig())
    folder = tmp_path / "run"
    assert result.stopped_by == "finished"
    assert result.evaluation.score_name == "mask AP"
    assert result.evaluation.figures()["box_ap50"] > 0.6
    assert result.evaluation.figures()["mask_ap50"] > 0.6
    facts = json.loads((folder / "result.json").read_text())
    assert facts["score"] == facts["mask_ap"] == result.evaluation.score
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert max(line["box_ap50"] for line in lines if line["kind"] == "val") > 0.6
    assert {"regions", "region_boxes", "classes", "boxes", "masks", "accuracy"} <= lines[0].keys()
    assert (folder / "report.html").read_text().count("<img") >= 4
    assert len(list((folder / "progress").glob("0*"))) == 2  # an evaluation each
    model = swindow.load(folder)
    assert model.classes == ("square", "bar")
    assert len(model.colours) == 2
    assert (model.preprocess.fit, model.preprocess.size) == ("within", (48, 80))
    assert model.config.head.regions.scales == (4.0,)
    first = sorted((tmp_path / "run" / "best").iterdir())
    assert first


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optim": OptimConfig(name="sgd", lr=0.01, accumulate=2, decay="step", milestones=(0.6,), clip=1.0)},
        {"model": "retinanet_swin_nano", "fields": {**SWIN, "pyramid_width": 16}},
        {"model": "detr_swin_nano", "fields": {**SWIN, **DETR, "num_queries": 5}},
        {"model": "cascade_mask_rcnn_resnet_18", "fields": {**RESNET, **RCNN, "box_conv_width": 8}},
    ],
    ids=["mask-rcnn-ema", "sgd-accumulate", "retinanet", "detr", "cascade"],
)
def test_two_steps_and_two_more_are_four_to_the_bit(config, tmp_path, changes):
    whole = run(config, out=str(tmp_path / "whole"), **changes)
    run(config, out=str(tmp_path / "parts"), max_steps=max(whole.step // 2, 1), **changes)
    run(config, out=str(tmp_path / "parts"), resume=True, **changes)
    assert contents(newest(tmp_path / "whole")) == contents(newest(tmp_path / "parts"))


def test_readers_in_other_processes_change_nothing(config, tmp_path):
    run(config, out=str(tmp_path / "here"), max_steps=3)
    run(config, out=str(tmp_path / "there"), max_steps=3, workers=1)
    assert contents(newest(tmp_path / "here")) == contents(newest(tmp_path / "there"))


def test_bf16_and_checkpointing_train_too(config):
    result = run(config, precision="bf16", checkpointing=True, max_steps=3)
    assert result.step == 3
    assert 0 <= result.evaluation.score <= 1


def test_boxes_alone_make_a_model_of_boxes_alone(config, pictures, tmp_path):
    for split in ("train", "val"):
        (tmp_path / "data" / "annotations").mkdir(parents=True, exist_ok=True)
        content = json.loads((pictures / "annotations" / f"{split}.json").read_text())
        for image in content["images"]:
            image["file_name"] = str(pictures / image["file_name"])
        content["annotations"] = [
            {name: value for name, value in entry.items() if name != "segmentation"} for entry in content["annotations"]
        ]
        (tmp_path / "data" / "annotations" / f"{split}.json").write_text(json.dumps(content))
        (tmp_path / "data" / split).symlink_to(pictures / split)
    with pytest.raises(ConfigError, match="has boxes alone"):
        run(config, data=str(tmp_path / "data"), fields={**config.fields, "masks": True})
    result = run(config, data=str(tmp_path / "data"), max_steps=1)
    assert result.evaluation.score_name == "box AP"
    assert swindow.load(tmp_path / "run").config.head.masks is False


def test_the_config_of_a_run_runs_again(config, tmp_path):
    run(config, max_steps=1, objects=ObjectConfig(outside="drop"), longest=64)
    again = from_dict(TrainConfig, read_toml(tmp_path / "run" / "config.toml"))
    assert again.objects.outside == "drop"
    assert again.fields["regions.scales"] == (4.0,)
    assert swindow.load(tmp_path / "run").preprocess.size == (48, 64)


def test_a_longest_side_below_the_short_one_is_refused():
    with pytest.raises(ConfigError, match="longest is 40 and size 48"):
        TrainConfig(size=48, longest=40)


@pytest.mark.parametrize("model", ["swin_nano", "upernet_swin_nano"])
def test_other_models_are_not_trained_on_objects(config, model):
    with pytest.raises(ConfigError, match="mask_rcnn_…"):
        run(config, model=model, fields={})


def test_a_box_that_cannot_be_is_found_before_the_first_step(config, tmp_path):
    path = paint(tmp_path / "bad", "train", 6)
    paint(tmp_path / "bad", "val", 4, first=6)
    content = json.loads(path.read_text())
    content["annotations"][2]["bbox"] = [1, 1, "wide", 4]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"train\.json.*annotation 3"):
        run(config, data=str(tmp_path / "bad"))
    assert not (tmp_path / "run" / "steps").exists()


def test_fields_within_fields_go_by_dotted_names():
    head = model_config("mask_rcnn_swin_nano", **{"regions.scales": (2.0, 4.0), "pyramid_width": 32}).head
    assert (head.regions.scales, head.regions.over, head.pyramid_width) == ((2.0, 4.0), 0.7, 32)
    with pytest.raises(UnknownName, match=r"regions\.scales"):
        model_config("mask_rcnn_swin_nano", **{"regions.scale": (2.0,)})
    with pytest.raises(ConfigError, match="scales is 'wide'"):
        model_config("mask_rcnn_swin_nano", **{"regions.scales": "wide"})


@pytest.mark.parametrize("name", DETECT)
def test_recipes_are_complete_and_their_models_can_be_built(name, pictures):
    facts = Facts(images=40, classes=2, channels=1, side=100, longest=120, task="detect", masks=True, object_side=20.0)
    recipe = RECIPES[name](facts)
    assert recipe.recipe == name
    with torch.device("meta"):
        swindow.build(recipe.model, num_classes=2, in_channels=1, **recipe.fields)
    assert configure(str(pictures), recipe=name).recipe == name


def test_the_small_recipe_is_chosen_and_enlarges_small_objects(pictures):
    config = configure(str(pictures))
    assert (config.recipe, config.model) == ("few-objects", "mask_rcnn_resnet_18")
    assert config.size == 256  # 48 pixels with squares of 16: four times as large, within 256 to 512
    facts = Facts(images=40, classes=2, channels=3, side=480, longest=640, task="detect", object_side=100.0)
    assert [
        RECIPES["few-objects"](dataclasses.replace(facts, object_side=side)).size for side in (100.0, 60.0, 0.0)
    ] == [320, 512, 480]


def test_fine_tuning_keeps_the_shape_of_the_weights(config, pictures, tmp_path):
    run(config, max_steps=1)
    again = configure(str(pictures), weights=str(tmp_path / "run"))
    assert (again.recipe, again.model) == ("finetune-objects", "mask_rcnn_resnet_18")
    assert again.fields["regions.scales"] == (4.0,)
    tuned = run(again, out=str(tmp_path / "tuned"), max_steps=1, workers=0, size=48, device="cpu", report=False)
    assert tuned.step == 1


def test_the_published_recipes_are_as_published():
    """Liu et al. 2021, section 4.2 and its code; Carion et al. 2020, section 4."""
    facts = Facts(images=117_266, classes=80, channels=3, side=480, longest=640, task="detect", masks=True)
    long, short = RECIPES["mask-rcnn-coco-3x"](facts), RECIPES["mask-rcnn-coco-1x"](facts)
    for recipe, epochs, falls in ((long, 36, (27, 33)), (short, 12, (8, 11))):
        assert (recipe.model, recipe.epochs, recipe.batch) == ("mask_rcnn_swin_tiny", epochs, 16)
        assert (recipe.optim.name, recipe.optim.lr, recipe.optim.weight_decay) == ("adamw", 1e-4, 0.05)
        steps = epochs * (117_266 // 16)
        rates = [schedule(step, steps, recipe.optim) for step in range(0, steps, 117_266 // 16)]
        assert [rates.index(pytest.approx(share)) for share in (0.1, 0.01)] == list(falls)
        assert (recipe.size, recipe.longest, recipe.fit) == (800, 1333, "within")
        assert recipe.augment.sides == (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
        assert (recipe.augment.detr_crop, recipe.augment.hflip) == (0.5, 0.5)
    assert (long.drop_path, short.drop_path) == (0.2, 0.1)
    cascade = RECIPES["cascade-coco-3x"](facts)
    assert cascade == dataclasses.replace(long, recipe="cascade-coco-3x", model="cascade_mask_rcnn_swin_tiny")
    detr = RECIPES["detr-coco"](facts)
    assert (detr.model, detr.epochs, detr.batch, detr.optim.clip) == ("detr_resnet50", 300, 64, 0.1)
    assert (detr.optim.lr, detr.optim.backbone_share, detr.optim.weight_decay) == (1e-4, 0.1, 1e-4)
    assert [schedule(epoch, 300, detr.optim) for epoch in (0, 199, 200)] == pytest.approx([1, 1, 0.1])


@pytest.mark.parametrize(
    "flags",
    [
        ["--augment.sides", "40", "48"],
        ["--augment.crop", "jitter", "--augment.paste", "0.5", "--longest", "48"],
        ["--recipe", "mask-rcnn-coco-1x", "--augment.crop", "jitter", "--optim.milestones", "0.6", "0.9"],
    ],
    ids=["sides", "jitter", "published"],
)
def test_flags_of_the_guide_change_a_recipe(pictures, tmp_path, flags):
    fixed = ["--size", "48", "--max-steps", "1", "--batch", "2", "--workers", "0", "--device", "cpu", "--no-report"]
    fields = [word for name, value in _FLAT.items() for word in (name, str(value))]
    words = ["train", str(pictures), "--out", str(tmp_path / "run"), "--model", "mask_rcnn_resnet_18", *fixed, *flags]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*words, "--fields", *fields])
    made = from_dict(TrainConfig, read_toml(tmp_path / "run" / "config.toml"))
    assert made.augment.crop == ("jitter" if "jitter" in flags else "sides")
    assert made.optim.milestones == ((0.6, 0.9) if "--optim.milestones" in flags else ())


def test_what_eval_writes_is_scored_alike_by_pycocotools_against_the_file_itself(config, pictures, tmp_path):
    """The data's own numbers: categories 3 and 7, images 16 to 21."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    run(config, epochs=20, eval_every=20, optim=OptimConfig(lr=4e-3, clip=5.0))
    with pytest.raises(SystemExit, match="0"):
        cli.main(["eval", str(tmp_path / "run"), "--out", str(tmp_path / "judged")])
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(pictures / "annotations" / "val.json"))
        found = truth.loadRes(str(tmp_path / "judged" / "detections.json"))
        figures = json.loads((tmp_path / "judged" / "figures.json").read_text())
        for kind, name in (("bbox", "box_ap"), ("segm", "mask_ap")):
            judge = COCOeval(truth, found, kind)
            judge.evaluate()
            judge.accumulate()
            judge.summarize()
            assert judge.stats[0] == pytest.approx(figures[name], abs=1e-12)
            assert judge.stats[0] > 0
