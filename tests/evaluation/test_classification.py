"""Evaluation: every image asked once, compared with its own label, whatever order classes and batches come in."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from pictures import class_folders
from swindow.checkpoints import save
from swindow.config import dumps
from swindow.data import Images, open_data, split_record
from swindow.errors import ConfigError, DataError, TrainingDiverged
from swindow.evaluation import Confusion, evaluate
from swindow.preprocess import Preprocess
from swindow.training import TrainConfig

CLASSES = ("red", "green", "blue")


@pytest.fixture
def model(tiny):
    """A model that answers differently to different images."""
    model = tiny(num_classes=3)
    model.preprocess = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.2,) * 3)
    model.classes = CLASSES
    torch.nn.init.normal_(model.head.linear.weight, std=1.0)
    return model


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(256, (30, 3, 20, 24), generator=generator, dtype=torch.uint8)
    pixels = pixels // 4 + torch.randint(192, (30, 3, 1, 1), generator=generator, dtype=torch.uint8)
    labels = torch.randint(3, (30,), generator=generator).numpy()
    names = [f"image{number}" for number in range(30)]
    return Images(names=names, labels=labels, classes=CLASSES, channels=3, pixels=pixels)


def asked_one_by_one(model, images):
    """Probabilities by the shortest way there is."""
    with torch.no_grad():
        logits = [model(model.preprocess(images.read(row))[None]) for row in range(len(images))]
    return torch.cat(logits).softmax(dim=1).numpy()


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_is_what_asking_one_by_one_gives(model, images, batch):
    found = evaluate(model, images, batch=batch, precision="fp32")
    wanted = asked_one_by_one(model, images)
    np.testing.assert_allclose(found.probabilities, wanted, atol=2e-6)
    guesses = wanted.argmax(axis=1)
    assert len(set(guesses)) > 1
    assert found.count == 30
    assert found.accuracy == pytest.approx((guesses == images.labels).mean())
    assert found.loss == pytest.approx(-np.log(wanted[np.arange(30), images.labels]).mean(), abs=1e-5)
    assert found.confusion.sum() == 30
    assert found.confusion[1, 2] == ((images.labels == 1) & (guesses == 2)).sum()
    assert found.top5 is None
    assert found.names == tuple(images.names)
    assert (found.split, found.classes) == ("all", CLASSES)


def test_two_evaluations_are_the_same_to_the_bit(model, images):
    first, second = evaluate(model, images, batch=8), evaluate(model, images, batch=8)
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    assert first.summary() == second.summary()


def test_the_training_mode_of_every_module_is_put_back(model, images):
    model.train()
    model.backbone.patch_embed.eval()
    before = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, images)
    assert [module.training for module in model.modules()] == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_dropout_and_stochastic_depth_are_off(tiny, model, images):
    random = tiny(num_classes=3, dropout=0.5, drop_path=0.5, head_dropout=0.5)
    random.load_state_dict(model.state_dict())
    random.preprocess, random.classes = model.preprocess, model.classes
    found, wanted = evaluate(random.train(), images), evaluate(model, images)
    np.testing.assert_array_equal(found.probabilities, wanted.probabilities)


def test_classes_are_matched_by_name(model, images):
    others = ("blue", "red", "green")
    places = np.asarray([others.index(name) for name in CLASSES])
    shuffled = dataclasses.replace(images, classes=others, labels=places[images.labels])
    found, wanted = evaluate(model, shuffled), evaluate(model, images)
    assert found.summary() == wanted.summary()
    np.testing.assert_array_equal(found.labels, images.labels)


def test_data_may_lack_some_of_the_models_classes(model, images):
    only = images.subset(images.labels != 1)
    renamed = dataclasses.replace(only, classes=("red", "blue"), labels=(only.labels == 2).astype(np.int64))
    green = evaluate(model, renamed).per_class[1]
    assert (green.name, green.count, green.recall) == ("green", 0, None)


def test_classes_that_the_model_does_not_know_are_refused_in_one_line(model, images):
    strange = dataclasses.replace(images, classes=("red", "green", "cyan"))
    with pytest.raises(DataError, match=r"3 classes, the model 3.*does not know.*cyan") as caught:
        evaluate(model, strange)
    assert "\n" not in str(caught.value)


def test_mistakes_and_confusions_by_hand(model, images):
    found = evaluate(model, images)
    guesses = found.probabilities.argmax(axis=1)
    wrong = [row for row in range(30) if guesses[row] != images.labels[row]]
    assert found.mistakes() == sorted(wrong, key=lambda row: -found.probabilities[row].max())
    pairs = [(CLASSES[images.labels[row]], CLASSES[guesses[row]]) for row in wrong]
    assert {(pair.truth, pair.predicted): pair.count for pair in found.confusions()} == {
        pair: pairs.count(pair) for pair in pairs
    }
    counts = [pair.count for pair in found.confusions()]
    assert counts == sorted(counts, reverse=True)
    assert all(isinstance(pair, Confusion) for pair in found.confusions())


def test_summary_is_json_and_table_names_every_class(model, images):
    found = evaluate(model, images, split="val")
    read = json.loads(json.dumps(found.summary(most=2)))
    assert read["split"] == "val"
    assert read["accuracy"] == found.accuracy
    assert [score["name"] for score in read["per_class"]] == list(CLASSES)
    assert len(read["confusions"]) == 2
    lines = found.table(most=2).splitlines()
    assert lines[0].startswith(f"val: accuracy {found.accuracy:.2%} of 30 images (loss ")
    f1 = {score.name: score.f1 or 0.0 for score in found.per_class}
    assert [line.split()[0] for line in lines[2:4]] == sorted(f1, key=f1.__getitem__)[:2]
    assert lines[4] == "and 1 classes with a higher F1"


def test_a_bad_image_ends_it_and_is_named(model, tmp_path):
    class_folders(tmp_path, per_class=3)
    bad = tmp_path / "green" / "001.png"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(DataError, match=r"green.001\.png"):
        evaluate(model, tmp_path, batch=2)


def test_a_folder_without_splits_is_judged_whole(model, tmp_path):
    class_folders(tmp_path, per_class=4)
    found = evaluate(model, tmp_path)
    assert (found.split, found.count) == ("all", 12)


def test_of_the_splits_that_there_are_test_comes_first(model, tmp_path):
    for number, split in enumerate(("train", "val", "test")):
        class_folders(tmp_path / split, per_class=2 + number)
    assert [(e.split, e.count) for e in (evaluate(model, str(tmp_path)), evaluate(model, tmp_path, split="train"))] == [
        ("test", 12),
        ("train", 6),
    ]
    with pytest.raises(DataError, match="has no valid images; there are train, val, test"):
        evaluate(model, tmp_path, split="valid")


def test_a_grey_model_judges_colour_images(tiny, tmp_path):
    model = tiny(num_classes=3, in_channels=1)
    model.preprocess, model.classes = Preprocess(size=(16, 16), mean=(0.5,), std=(0.2,)), CLASSES
    assert evaluate(model, class_folders(tmp_path, per_class=2)).count == 6


def test_a_run_is_judged_on_what_it_held_out(model, tmp_path):
    folder = class_folders(tmp_path / "data", per_class=10)
    config = TrainConfig(data=str(folder), seed=5, val_fraction=0.2)
    source = open_data(str(folder), seed=5, val_fraction=0.2)
    run = tmp_path / "run"
    save(model, run / "best")
    (run / "config.toml").write_text(dumps(config))
    (run / "split.json").write_text(json.dumps(split_record(source)))
    for path in (run, run / "best", run / "best" / "model.safetensors"):
        found = evaluate(path)
        assert found.split == "val"
        assert sorted(found.names) == sorted(map(str, source.split("val").names))


def test_what_cannot_be_judged_is_refused(model, images, tiny):
    with pytest.raises(DataError, match="val split has no images"):
        evaluate(model, images.subset(np.zeros(30, bool)), split="val")
    with pytest.raises(ConfigError, match="no data to judge a model at hand on"):
        evaluate(model)
    with pytest.raises(ConfigError, match="batch is 0"):
        evaluate(model, images, batch=0)
    with pytest.raises(ConfigError, match=r"swin_micro has no preprocessing.*swindow\.load"):
        evaluate(tiny(num_classes=3), images)


def test_answers_that_are_not_finite_are_refused(model, images):
    with torch.no_grad():
        model.head.linear.bias[1] = torch.inf
    with pytest.raises(TrainingDiverged, match=r"image0: .*30 of 30 images"):
        evaluate(model, images)


def test_progress_counts_every_image(model, images):
    class Watch:
        def __init__(self):
            self.heard = []

        def say(self, line):
            self.heard.append(line)

        def begin(self, title, total, done=0):
            self.heard.append((title, total))

        def advance(self, items=1, **values):
            self.heard.append(items)

        def end(self):
            self.heard.append("end")

    watch = Watch()
    evaluate(model, images, batch=16, progress=watch)
    assert watch.heard == [("evaluate all", 30), 16, 14, "end"]
