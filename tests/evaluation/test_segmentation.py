"""Judging a segmenter: every picture and every counted pixel once, whatever sizes, batches and windows they come in."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from segmenters import local, picture, pointwise, segmenter
from swindow.checkpoints import save
from swindow.config import dumps
from swindow.data import MaskConfig, open_data, split_record
from swindow.data.scenes import scenes_in_memory
from swindow.errors import ConfigError, DataError, TrainingDiverged
from swindow.evaluation import evaluate
from swindow.metrics import hausdorff95
from swindow.model import build
from swindow.preprocess import Preprocess
from swindow.progress import Silent
from swindow.settings import TrainConfig
from swindow.shapes import IGNORE
from swindow.sliding import Views

CLASSES = ("nothing", "blood", "wall")
WHOLE = Views(mode="whole")  # every picture at its own size
SIZES = [(20, 30), (20, 30), (33, 17), (20, 30), (33, 40), (33, 17)]


@pytest.fixture
def model():
    """A model that answers differently to different surroundings."""
    return named(segmenter(local(3), classes=3).model)


def named(model: nn.Module, classes: tuple[str, ...] = CLASSES) -> nn.Module:
    model.classes = classes
    return model


def masks(sizes=SIZES, *, classes=3, seed=5):
    """Random classes in blocks of four pixels, some ignored."""
    random = np.random.default_rng(seed)
    found = []
    for height, width in sizes:
        blocks = random.integers(IGNORE, classes, (-(-height // 4), -(-width // 4)))
        found.append(torch.from_numpy(blocks.repeat(4, 0).repeat(4, 1)[:height, :width].astype(np.int64)))
    return found


def scenes(sizes=SIZES, **fields):
    pictures = [picture(*size, seed=number) for number, size in enumerate(sizes)]
    return scenes_in_memory(pictures, masks(sizes), **({"classes": CLASSES} | fields))


def asked_one_by_one(model, data):
    """Truth and answer of each picture, and the losses of the counted pixels, by the shortest way there is."""
    pairs, losses = [], []
    for index in range(len(data)):
        with torch.no_grad():
            logits = model(model.preprocess.normalize(data.read(index)[None]))[0].double()
        truth = data.mask(index)
        pairs.append((truth.numpy(), logits.argmax(0).numpy()))
        losses.append(nn.functional.cross_entropy(logits[None], truth[None], ignore_index=IGNORE, reduction="none"))
    counted = [losses[k][0][torch.from_numpy(pairs[k][0]) != IGNORE] for k in range(len(data))]
    return pairs, torch.cat(counted)


def counts(pairs, classes=3):
    """The confusion, pixel by pixel."""
    confusion = np.zeros((classes, classes), np.int64)
    for truth, answer in pairs:
        for true, called in zip(truth.ravel(), answer.ravel(), strict=True):
            if true != IGNORE:
                confusion[true, called] += 1
    return confusion


@pytest.mark.parametrize(
    "views", [WHOLE, Views(mode="whole", batch=1), Views(mode="whole", batch=64), Views(mode="whole", memory=900)]
)
def test_is_what_asking_one_by_one_gives(model, views):
    data = scenes()
    found, (pairs, losses) = evaluate(model, data, precision="fp32", views=views), asked_one_by_one(model, data)
    wanted = counts(pairs)
    np.testing.assert_array_equal(found.confusion, wanted)
    assert found.loss == pytest.approx(float(losses.mean()), abs=1e-5)
    right, true, called = np.diag(wanted), wanted.sum(1), wanted.sum(0)
    assert [score.iou for score in found.per_class] == pytest.approx(list(right / (true + called - right)), abs=1e-9)
    assert found.mean_iou == pytest.approx(np.mean(right / (true + called - right)), abs=1e-9)
    assert found.mean_accuracy == pytest.approx(np.mean(right / true), abs=1e-9)
    assert found.pixel_accuracy == pytest.approx(right.sum() / wanted.sum(), abs=1e-9)
    assert (found.count, found.split, found.classes) == (6, "all", CLASSES)
    assert (found.score, found.score_name) == (found.mean_iou, "mean IoU")
    assert found.hd95_unit is None
    for image, pair, name in zip(found.per_image, pairs, data.names, strict=True):
        own = counts([pair])
        assert image.name == name
        assert image.pixel_accuracy == pytest.approx(np.trace(own) / own.sum(), abs=1e-9)
        overlaps = np.diag(own) / (own.sum(0) + own.sum(1) - np.diag(own))
        assert image.mean_iou == image.score == pytest.approx(overlaps.mean(), abs=1e-9)


def test_pictures_of_one_size_are_asked_together(model):
    evaluate(model, scenes(), views=Views(mode="whole", batch=2))
    assert sorted(model.inputs) == sorted([(2, 3, 20, 30), (1, 3, 20, 30), (2, 3, 33, 17), (1, 3, 33, 40)])


def test_few_pictures_wait_for_others_of_their_size(model, monkeypatch):
    monkeypatch.setattr("swindow.evaluation.pixels._WAITING", 2 * 3 * 20 * 30)
    found = evaluate(model, scenes(), views=Views(mode="whole", batch=64))
    assert max(shape[0] for shape in model.inputs) == 2
    np.testing.assert_array_equal(
        found.confusion, evaluate(model, scenes(), views=Views(mode="whole", batch=1)).confusion
    )


def test_large_pictures_are_seen_through_a_window(model):
    data = scenes([(70, 90)])
    found = evaluate(model, data, views=Views(batch=1))
    assert {shape[2:] for shape in model.inputs} == {(16, 24)}
    assert len(model.inputs) > 20
    assert found.confusion.sum() == int((data.mask(0) != IGNORE).sum())


def test_dice_is_of_pixels_pooled_within_a_case(model):
    cases = ("x", "y", "x", "z", "y", "x")
    data = scenes(cases=cases, background=0)
    found, (pairs, _) = (
        evaluate(model, data, surfaces=False, precision="fp32", views=WHOLE),
        asked_one_by_one(model, data),
    )
    assert [case.case for case in found.per_case] == ["x", "y", "z"]
    for case in found.per_case:
        own = counts([pair for pair, name in zip(pairs, cases, strict=True) if name == case.case])
        assert list(case.dice) == pytest.approx(list(2 * np.diag(own) / (own.sum(0) + own.sum(1))), abs=1e-9)
        assert case.hd95 == (None, None, None)
    assert found.per_class[1].dice == pytest.approx(np.mean([case.dice[1] for case in found.per_case]))
    assert found.mean_dice == pytest.approx(np.mean([case.dice[k] for case in found.per_case for k in (1, 2)]))
    assert (found.score, found.score_name) == (found.mean_dice, "mean Dice")


def answers_of(masks_, classes=3):
    """A model whose answer to a picture of one channel is the value of each pixel."""
    layer = nn.Conv2d(1, classes, 1)
    with torch.no_grad():  # -(value - k)² up to what all classes share
        layer.weight[:, 0, 0, 0] = 2 * torch.arange(float(classes))
        layer.bias.copy_(-(torch.arange(float(classes)) ** 2))
    asked = segmenter(layer, classes=classes, channels=1, mean=(0.0,), std=(1 / 255,))
    return named(asked.model), [mask.to(torch.uint8)[None] for mask in masks_]


def test_a_class_in_neither_is_left_out_and_in_one_only_is_zero():
    truth = [torch.zeros(6, 6, dtype=torch.int64) for _ in range(3)]
    answer = [mask.clone() for mask in truth]
    truth[0][0], answer[0][0] = 1, 1  # right
    truth[1][0] = 1  # missed
    answer[2][:2] = 2  # made up
    model, pictures = answers_of(answer)
    found = evaluate(model, scenes_in_memory(pictures, truth, classes=CLASSES, background=0))
    assert [case.dice for case in found.per_case] == [(1, 1, None), (60 / 66, 0, None), (48 / 60, None, 0)]
    assert (found.per_class[1].dice, found.per_class[2].dice) == (0.5, 0)
    assert found.mean_dice == 0.25
    assert [case.hd95 for case in found.per_case] == [(None, 0, None), (None, None, None), (None, None, None)]
    assert found.per_class[1].hd95 == 0


def test_surfaces_are_those_of_the_volume_in_millimetres():
    random = np.random.default_rng(2)
    truth, answer = (np.kron(random.integers(0, 3, (3, 4, 5)), np.ones((2, 3, 3), np.int64)) for _ in range(2))
    order = [4, 0, 2, 5, 1, 3]
    model, pictures = answers_of([torch.from_numpy(answer[place]) for place in order])
    data = scenes_in_memory(pictures, [torch.from_numpy(truth[place]) for place in order], classes=CLASSES,
                            cases=("v",) * 6, background=0, spacings={"v": (2.5, 0.7, 1.1)})  # fmt: skip
    data = dataclasses.replace(data, names=[f"v.npz[{place}]" for place in order])
    found = evaluate(model, data, views=Views(batch=4))
    wanted = [hausdorff95(answer == k, truth == k, (2.5, 0.7, 1.1)) for k in (1, 2)]
    assert found.per_case[0].hd95 == (None, *wanted)
    assert found.hd95_unit == "mm"
    gone = dataclasses.replace(data.subset([0, 1, 2]), spacings={})  # slices 4, 0 and 2 are no volume; no spacing
    flat = evaluate(model, gone)
    assert flat.hd95_unit == "pixels"
    from swindow.metrics import percentile95, surface_distances

    each = [surface_distances(answer[place] == 1, truth[place] == 1) for place in order[:3]]
    assert flat.per_case[0].hd95[1] == percentile95([part for pair in each for part in pair])


def test_pixels_that_do_not_count_have_no_surface():
    truth, answer = torch.zeros(12, 12, dtype=torch.int64), torch.zeros(12, 12, dtype=torch.int64)
    truth[2:5, 2:5] = answer[2:5, 2:5] = answer[9:, 9:] = 1
    truth[8:, 8:] = IGNORE
    model, pictures = answers_of([answer])
    found = evaluate(model, scenes_in_memory(pictures, [truth], classes=CLASSES, background=0))
    assert found.per_case[0].hd95[1] == 0
    assert found.per_case[0].dice[1] == 1


def test_surfaces_are_taken_where_there_is_a_background_unless_asked(model):
    medical = scenes(background=0)
    assert evaluate(model, medical).hd95_unit == "pixels"
    assert evaluate(model, medical, surfaces=False).hd95_unit is None
    assert evaluate(model, scenes(), surfaces=True).hd95_unit == "pixels"


def test_classes_are_matched_by_name(model):
    data = scenes(background=0)
    others = ("wall", "nothing", "blood")
    to = torch.tensor([1, 2, 0, IGNORE])
    shuffled = scenes_in_memory(
        [data.read(k) for k in range(6)], [to[data.mask(k)] for k in range(6)], classes=others, background=1
    )
    found, wanted = evaluate(model, shuffled), evaluate(model, data)
    assert found.summary() == wanted.summary()
    assert found.background == 0
    assert len(found.colours) == 3
    with pytest.raises(DataError, match=r"does not know.*cyan"):
        evaluate(model, scenes(classes=("nothing", "blood", "cyan")))


def test_the_models_colours_are_kept(model):
    model.colours = ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    assert evaluate(model, scenes()).colours == model.colours


def test_best_median_and_worst_are_told_apart(model):
    found = evaluate(model, scenes([(20, 30)] * 11))
    ranks = sorted(range(11), key=lambda row: found.per_image[row].score)
    assert found.best_median_worst(2) == {"worst": ranks[:2], "median": ranks[4:6], "best": ranks[:-3:-1]}
    few = evaluate(model, scenes([(20, 30)] * 4)).best_median_worst(3)
    rows = [row for part in few.values() for row in part]
    assert sorted(rows) == [0, 1, 2, 3]
    assert len(few["worst"]) == 3


def test_pictures_without_a_counted_pixel_have_no_score(model):
    data = scenes()
    empty = scenes_in_memory(
        [data.read(0), data.read(1)], [torch.full_like(data.mask(0), IGNORE), data.mask(1)], classes=CLASSES
    )
    found = evaluate(model, empty)
    first = found.per_image[0]
    assert (first.mean_iou, first.pixel_accuracy, first.score) == (None, None, None)
    assert found.best_median_worst(1) == {"worst": [1], "median": [], "best": []}
    with pytest.raises(DataError, match=r"not one pixel of the val split's 1 masks counts"):
        evaluate(model, empty.subset([0]), split="val")


def test_data_that_shows_no_object_cannot_be_scored(model):
    blank = scenes_in_memory([picture(8, 8)], [torch.zeros(8, 8, dtype=torch.int64)], classes=CLASSES, background=0)
    with pytest.raises(DataError, match=r"show nothing but nothing.*there is nothing to score"):
        evaluate(model, blank)


def test_summary_is_json_and_the_table_names_every_class(model):
    found = evaluate(model, scenes(cases=("x", "y", "x", "z", "y", "x"), background=0), split="val")
    read = json.loads(json.dumps(found.summary(most=2)))
    assert (read["split"], read["score"], read["hd95_unit"]) == ("val", found.mean_dice, "pixels")
    assert [score["name"] for score in read["per_class"]] == list(CLASSES)
    assert read["per_case"][0]["dice"] == {"blood": found.per_case[0].dice[1], "wall": found.per_case[0].dice[2]}
    assert len(read["confusions"]) == len(read["worst"]) == 2
    lines = found.table().splitlines()
    assert lines[0].startswith(f"val: mean Dice {found.mean_dice:.2%} of 3 cases, mean IoU {found.mean_iou:.2%}, ")
    assert lines[1].split() == ["class", "pixels", "IoU", "accuracy", "Dice", "HD95", "pixels"]
    assert [line.split()[0] for line in lines[2:5]] == list(CLASSES)
    assert lines[2].split()[-1] == "–"
    assert len({len(line) for line in lines[1:5]}) == 1
    assert found.figures().keys() == {"mean_iou", "mean_accuracy", "pixel_accuracy", "mean_dice", "loss"}
    hardest = found.table(most=1).splitlines()
    assert hardest[2].split()[0] == min(found.per_class, key=lambda score: score.iou).name
    assert hardest[3] == "and 2 classes with a higher IoU"


def test_two_evaluations_are_the_same_and_the_mode_is_put_back(model):
    model.train()
    first, second = evaluate(model, scenes()), evaluate(model, scenes())
    assert model.training
    assert torch.is_grad_enabled()
    assert first.summary() == second.summary()
    np.testing.assert_array_equal(first.confusion, second.confusion)


def test_progress_counts_every_picture(model):
    class Watch(Silent):
        heard: tuple = ()

        def begin(self, title, total, done=0):
            self.heard += ((title, total),)

        def advance(self, items=1, **values):
            self.heard += (items,)

    watch = Watch()
    evaluate(model, scenes(), progress=watch)
    assert watch.heard == (("evaluate all", 6), *[1] * 6)


def test_a_bad_picture_or_mask_ends_it_and_is_named(model, tmp_path):
    folder = pairs_on_disk(tmp_path)
    bad = folder / "images" / "003.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:100])
    with pytest.raises(DataError, match=r"images.003\.png"):
        evaluate(model, open_data(folder, for_training=False, task="segment").split("train"))
    bad.write_bytes(whole)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "masks" / "002.png")
    with pytest.raises(DataError, match=r"masks.002\.png.*4 × 4"):
        evaluate(model, open_data(folder, for_training=False, task="segment").split("train"))


def pairs_on_disk(path, count=6, ignored=255):
    """A folder of pictures and index masks, with a table of classes."""
    for part in ("images", "masks"):
        (path / part).mkdir(parents=True)
    for number, mask in enumerate(masks([(20, 30)] * count)):
        pixels = picture(20, 30, seed=number).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(path / "images" / f"{number:03}.png")
        stored = torch.where(mask == IGNORE, ignored, mask).to(torch.uint8)
        Image.fromarray(stored.numpy()).save(path / "masks" / f"{number:03}.png")
    (path / "classes.txt").write_text("".join(f"{k} {name}\n" for k, name in enumerate(CLASSES)))
    return path


def trained(classes=CLASSES):
    """A small model as a run leaves it."""
    from segmenters import TINY

    model = build("unet_swin_micro", num_classes=len(classes), **TINY).eval()
    model.preprocess = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.2,) * 3, fit="native")
    return named(model, classes)


def test_a_folder_is_judged_whole_and_a_run_on_what_it_held_out(tmp_path):
    folder, model, how = (
        pairs_on_disk(tmp_path / "data", count=10, ignored=254),
        trained(),
        MaskConfig(ignore_index=254),
    )
    found = evaluate(model, folder, masks=how)
    assert (found.split, found.count) == ("all", 10)
    assert found.confusion.sum() == sum(int((mask != IGNORE).sum()) for mask in masks([(20, 30)] * 10))
    config = TrainConfig(data=str(folder), seed=5, val_fraction=0.3, masks=how, views=Views(flip=True))
    source = open_data(str(folder), seed=5, val_fraction=0.3, masks=how)
    run = tmp_path / "run"
    save(model, run / "best")
    (run / "config.toml").write_text(dumps(config))
    (run / "split.json").write_text(json.dumps(split_record(source)))
    for path in (run, run / "best" / "model.safetensors"):
        again = evaluate(path, precision="fp32")
        assert again.split == "val"
        assert sorted(image.name for image in again.per_image) == sorted(map(str, source.split("val").names))
        assert again.summary() == evaluate(path, source.split("val"), split="val", precision="fp32").summary()
        plain = evaluate(path, source.split("val"), split="val", precision="fp32", views=Views())
        assert plain.loss != again.loss  # mirrored views are the run's own
    assert evaluate(run, folder).count == 10
    with pytest.raises(DataError, match=r"254 .*no class"):
        evaluate(run, folder, masks=MaskConfig())


def test_what_cannot_be_judged_is_refused(model, tiny):
    classifier = tiny(num_classes=3)
    classifier.preprocess, classifier.classes = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.2,) * 3), CLASSES
    with pytest.raises(ConfigError, match="swin_micro is to classify and the data is to segment: it has masks"):
        evaluate(classifier, scenes())
    with pytest.raises(DataError, match="no images"):
        evaluate(model, scenes().subset(np.zeros(6, bool)))
    with pytest.raises(ConfigError, match="slide"):
        evaluate(named(segmenter(pointwise(3), classes=3, fit="squash").model), scenes(), views=Views(mode="slide"))


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_answers_that_are_not_finite_are_refused(model, value):
    model.layers.bias.data[1] = value
    with pytest.raises(TrainingDiverged, match=r"image\[0\]: the model's answer is not finite"):
        evaluate(model, scenes(), views=Views(batch=1))
