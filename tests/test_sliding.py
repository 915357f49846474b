"""A window that slides: every pixel answered once, the same as by definition, in the memory that was allowed."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import nn

from segmenters import TINY, Layers, Ramps, local, picture, pointwise, segmenter
from swindow.errors import ConfigError, ShapeError, TrainingDiverged
from swindow.inference import ready
from swindow.model import build
from swindow.preprocess import Preprocess
from swindow.rasters import InMemory
from swindow.sliding import Segmenter, Views, most_probable

MODES = ("whole", "slide")
SIZES = [(50, 71), (16, 24), (17, 24), (5, 200), (100, 3), (1, 1), (33, 48)]


def answer(asked, pixels, **views):
    return Segmenter(asked, Views(**views)).logits(InMemory(pixels))


def by_definition(asked, pixels, *, overlap, weight):
    """The weighted mean over windows, each placed, weighed and summed by itself in fp64."""
    height, width = pixels.shape[1:]
    zoom, sides = asked.preprocess.zoom, []
    for length, side in zip((height, width), asked.preprocess.size, strict=True):
        window = min(length, round(side / zoom))
        count = int(np.ceil((length - window) / (window * (1 - overlap)) - 1e-9)) + 1
        starts = [round(place * (length - window) / max(1, count - 1)) for place in range(count)]
        away = np.abs(np.arange(window) - (window - 1) / 2)
        sides.append((window, starts, np.exp(-((away * 8 / window) ** 2) / 2) if weight == "gaussian" else away**0))
    (tall, tops, rows), (wide, lefts, columns) = sides
    seen = (round(tall * zoom), round(wide * zoom))
    total, weights = torch.zeros(len(asked.classes), height, width, dtype=torch.float64), np.zeros((height, width))
    resize = Preprocess(size=seen, mean=asked.preprocess.mean, std=asked.preprocess.std, fit="squash")
    for top in tops:
        for left in lefts:
            part = pixels[None, :, top : top + tall, left : left + wide]
            logits = in_the_middle(asked, resize.resize(part)).double()
            logits = nn.functional.interpolate(logits, size=(tall, wide), mode="bilinear", align_corners=False)[0]
            here = np.s_[top : top + tall, left : left + wide]
            total[:, here[0], here[1]] += logits * torch.from_numpy(np.outer(rows, columns))
            weights[here] += np.outer(rows, columns)
    assert weights.min() > 0
    return (total / torch.from_numpy(weights)).float()


def in_the_middle(asked, pixels):
    """What a model says about an input in the middle of a window of its mean colour, if it is smaller than one."""
    whole = asked.preprocess.size
    spare = [max(side - given, 0) for side, given in zip(whole, pixels.shape[2:], strict=True)]
    (above, left), (down, right) = (side // 2 for side in spare), (side - side // 2 for side in spare)
    mean = torch.tensor([round(255 * mean) for mean in asked.preprocess.mean])[None, :, None, None]
    padded = nn.functional.pad(pixels.int() - mean, (left, right, above, down)) + mean
    logits = asked.model(asked.preprocess.normalize(padded.to(torch.uint8)))
    return logits[..., above : logits.shape[2] - down, left : logits.shape[3] - right]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weight", ["gaussian", "plain"])
def test_where_pixels_answer_for_themselves_sliding_is_the_whole(size, weight):
    asked, pixels = segmenter(pointwise()), picture(*size)
    with torch.no_grad():
        wanted = asked.model(asked.preprocess.normalize(pixels[None]))[0]
    for mode in MODES:
        torch.testing.assert_close(answer(asked, pixels, mode=mode, weight=weight), wanted, atol=2e-6, rtol=0)


def test_where_windows_hold_the_receptive_field_sliding_is_the_whole():
    reach, size = 3, (64, 90)
    asked, pixels = segmenter(local(reach=reach), size=(24, 24)), picture(*size)
    whole, found = (answer(asked, pixels, mode=mode, overlap=0.25) for mode in MODES)
    same = torch.ones(size, dtype=torch.bool)
    for axis, starts in enumerate(([0, 13, 27, 40], [0, 16, 33, 50, 66])):
        for start in starts:
            for border in (start, start + 24):
                if 0 < border < size[axis]:
                    band = [slice(None), slice(None)]
                    band[axis] = slice(border - reach, border + reach)
                    same[tuple(band)] = False
    assert same.float().mean() > 0.1
    torch.testing.assert_close(found[:, same], whole[:, same], atol=2e-6, rtol=0)
    assert (found - whole).abs()[:, ~same].max() > 1e-3  # elsewhere a window ends too near


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("overlap", "weight"), [(1 / 3, "gaussian"), (0.0, "plain"), (0.7, "gaussian"), (0.5, "plain")]
)
def test_equals_the_definition(size, overlap, weight):
    asked, pixels = segmenter(Ramps(pointwise())), picture(*size)
    found = answer(asked, pixels, mode="slide", overlap=overlap, weight=weight)
    wanted = by_definition(asked, pixels, overlap=overlap, weight=weight)
    torch.testing.assert_close(found, wanted, atol=3e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("zoom", [0.5, 2.0, 1.3])
def test_a_zoomed_model_reads_windows_of_the_pictures_own_pixels(zoom):
    asked, pixels = segmenter(Ramps(pointwise()), size=(26, 26), zoom=zoom), picture(75, 110)
    found = answer(asked, pixels, mode="slide")
    wanted = by_definition(asked, pixels, overlap=1 / 3, weight="gaussian")
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert set(asked.model.inputs) >= {(1, 3, 26, 26)}


def test_short_sides_slide_at_their_own_zoom():
    asked, pixels = segmenter(pointwise(), size=(16, 16), fit="short"), picture(32, 100)
    Segmenter(asked, Views(mode="slide", batch=1)).labels(InMemory(pixels))
    assert set(asked.model.inputs) == {(1, 3, 16, 16)}
    assert len(asked.model.inputs) == 5  # windows of 32 × 32 pixels, 21 apart at most


@pytest.mark.parametrize("memory", [8_000, 5_000, 1])
@pytest.mark.parametrize("overlap", [1 / 3, 0.75])
def test_memory_changes_nothing_to_the_bit(tiny_segmenter, memory, overlap):
    asked, pixels = tiny_segmenter, picture(*((30, 60) if overlap < 0.5 else (20, 30)))
    views = {"mode": "slide", "batch": 1, "overlap": overlap}
    wanted, windows = answer(asked, pixels, **views), count_windows(asked, pixels, **views)
    assert torch.equal(answer(asked, pixels, memory=memory, **views), wanted)
    assert count_windows(asked, pixels, memory=memory, **views) > windows  # in several strips


def count_windows(asked, pixels, **views):
    seen = []
    handle = asked.model.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[0]))
    Segmenter(asked, Views(**views)).labels(InMemory(pixels))
    handle.remove()
    return len(seen)


@pytest.fixture
def tiny_segmenter():
    """A model that attends, on windows of 16 × 16 pixels."""
    torch.manual_seed(1)
    model = build("unet_swin_micro", num_classes=5, **TINY).eval()
    model.preprocess = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.2,) * 3, fit="native")
    return ready(model, precision="fp32")


def test_batches_change_no_more_than_arithmetic(tiny_segmenter):
    pixels = picture(50, 60)
    wanted = answer(tiny_segmenter, pixels, mode="slide", batch=1)
    for batch in (3, 7, 0):
        torch.testing.assert_close(answer(tiny_segmenter, pixels, mode="slide", batch=batch), wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_small_pictures_lie_in_the_middle_of_a_window_unless_asked_for_whole(tiny_segmenter):
    for size in ((5, 9), (16, 3), (1, 1)):
        pixels = picture(*size)
        padded = in_the_middle(tiny_segmenter, pixels[None])[0]
        own = tiny_segmenter.model(tiny_segmenter.preprocess.normalize(pixels[None]))[0]
        assert torch.equal(answer(tiny_segmenter, pixels, mode="slide"), padded)
        assert torch.equal(answer(tiny_segmenter, pixels), padded)
        assert torch.equal(answer(tiny_segmenter, pixels, mode="whole"), own)
        assert not torch.equal(own, padded)


@settings(max_examples=20)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 30),
    side=st.integers(1, 20),
    overlap=st.floats(0, 0.8),
    memory=st.sampled_from([1, 3_000, 2**30]),
    weight=st.sampled_from(["gaussian", "plain"]),
)
def test_regions_miss_nothing_and_do_not_overlap(height, width, side, overlap, memory, weight):
    asked = segmenter(Ones(), classes=2, size=(side, side + 3))
    views = Views(mode="slide", overlap=overlap, memory=memory, weight=weight)
    seen = torch.zeros(height, width, dtype=torch.int64)
    for region in Segmenter(asked, views).regions(InMemory(picture(height, width))):
        assert region.logits.dtype == torch.float32
        rows, columns = region.logits.shape[1:]
        assert min(rows, columns) > 0
        seen[region.top : region.top + rows, region.left : region.left + columns] += 1
        torch.testing.assert_close(region.logits, torch.ones(2, rows, columns), atol=1e-6, rtol=0)  # weights add to 1
    assert (seen == 1).all()


class Ones(nn.Module):
    """Two classes, always of the same logit."""

    def forward(self, images):
        return images.new_ones(len(images), 2, *images.shape[2:])


@torch.no_grad()
def test_several_views_are_averaged_as_probabilities():
    asked, pixels = segmenter(Ramps(local())), picture(30, 41)
    scales = (1.0, 0.5, 1.5)
    found = answer(asked, pixels, mode="whole", scales=scales, flip=True)
    total = torch.zeros(4, 30, 41)
    for scale in scales:
        size = (round(30 * scale), round(41 * scale))
        resize = Preprocess(size=size, mean=asked.preprocess.mean, std=asked.preprocess.std, fit="squash")
        seen = resize.normalize(resize.resize(pixels[None]))
        for mirrored in (False, True):
            logits = asked.model(seen.flip(-1)).flip(-1) if mirrored else asked.model(seen)
            logits = nn.functional.interpolate(logits, size=(30, 41), mode="bilinear", align_corners=False)
            total += logits.softmax(1)[0] / 6
    torch.testing.assert_close(found, total.log(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.exp().sum(0), torch.ones(30, 41))
    single = answer(asked, pixels, mode="whole")
    assert (found.exp() - single.softmax(0)).abs().max() > 1e-3


def test_mirrored_views_make_the_answer_symmetric():
    asked, pixels = segmenter(local(), size=(16, 16)), picture(16, 40)
    found = answer(asked, pixels, mode="whole", flip=True)
    mirrored = answer(asked, pixels.flip(-1), mode="whole", flip=True)
    torch.testing.assert_close(found.flip(-1), mirrored, atol=1e-5, rtol=0)
    assert not torch.allclose(answer(asked, pixels, mode="whole"), found, atol=1e-2)


def test_probabilities_below_fp32_keep_their_logarithm():
    asked = segmenter(Huge(), classes=2)
    found = answer(asked, picture(8, 8), mode="whole", flip=True)
    torch.testing.assert_close(found[1], torch.full((8, 8), -300.0))


class Huge(nn.Module):
    """A difference of logits whose probability is no float32."""

    def forward(self, images):
        out = images.new_zeros(len(images), 2, *images.shape[2:])
        out[:, 0] = 300
        return out


@pytest.mark.parametrize("fit", ["native", "short", "squash", "pad"])
@pytest.mark.parametrize("size", [(50, 71), (90, 20), (1, 30)])
def test_whole_pictures_come_back_to_their_own_pixels(fit, size):
    asked, pixels = segmenter(Ramps(local()), fit=fit), picture(*size)
    preprocess = asked.preprocess
    with torch.no_grad():
        wanted = preprocess.restore(asked.model(preprocess(pixels[None])), size)[0]
    assert torch.equal(answer(asked, pixels, mode="whole"), wanted)
    for memory in (1, 5_000):  # in bands of a few rows
        torch.testing.assert_close(answer(asked, pixels, mode="whole", memory=memory), wanted, atol=2e-5, rtol=0)


def test_the_mode_follows_picture_memory_and_fit():
    native = Segmenter(segmenter(pointwise(), size=(16, 16)))
    assert native.sees_whole(16, 16)
    assert not native.sees_whole(17, 8)
    short = Segmenter(segmenter(pointwise(), size=(16, 16), fit="short"))
    assert short.sees_whole(32, 128)
    assert not short.sees_whole(32, 130)
    tight = Segmenter(segmenter(pointwise(), size=(16, 16), fit="short"), Views(memory=4 * 4 * 31 * 32))
    assert not tight.sees_whole(32, 128)
    assert Segmenter(segmenter(pointwise(), fit="squash")).sees_whole(10_000, 10_000)
    zoomed = Segmenter(segmenter(pointwise(), size=(16, 16), zoom=0.5))
    assert zoomed.sees_whole(32, 32)
    assert not zoomed.sees_whole(34, 32)


def test_windows_are_asked_together_as_far_as_they_are_small():
    asked = segmenter(pointwise(), size=(64, 64))
    assert Segmenter(asked).at_once(64, 64) == 64
    assert Segmenter(asked).at_once(512, 512) == 1
    assert Segmenter(asked).at_once(1, 9) == 64  # each in the middle of a window
    assert Segmenter(asked, Views(batch=5)).at_once(512, 512) == 5
    Segmenter(asked, Views(mode="slide", batch=5)).labels(InMemory(picture(150, 150)))
    assert {shape[0] for shape in asked.model.inputs} == {5, 1}  # 16 windows
    assert {shape[2:] for shape in asked.model.inputs} == {(64, 64)}


@pytest.mark.parametrize("mode", MODES)
def test_labels_are_the_most_probable_classes(mode, tmp_path):
    asked, pixels = segmenter(Ramps(local())), picture(60, 75)
    wanted = answer(asked, pixels, mode=mode).argmax(0).numpy()
    asking = Segmenter(asked, Views(mode=mode))
    found = asking.labels(InMemory(pixels))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, wanted)
    out = np.memmap(tmp_path / "labels", np.int16, "w+", shape=(60, 75))
    assert asking.labels(InMemory(pixels), out=out) is out
    np.testing.assert_array_equal(out, wanted)
    for wrong in (np.empty((75, 60), np.uint8), np.empty((60, 75), np.float32)):
        with pytest.raises(ShapeError, match=r"give \(60, 75\) of integers up to 3, such as uint8"):
            asking.labels(InMemory(pixels), out=wrong)


def test_more_classes_than_a_byte_holds():
    asked = segmenter(pointwise(classes=256), classes=256)
    assert Segmenter(asked).labels(InMemory(picture(4, 4))).dtype == np.uint16
    with pytest.raises(ShapeError, match="integers up to 255"):
        Segmenter(asked).labels(InMemory(picture(4, 4)), out=np.empty((4, 4), np.int8))


def test_the_first_of_equal_classes_is_taken_as_argmax_does():
    logits = torch.randint(3, (9, 40, 40), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(most_probable(logits), logits.argmax(0))
    by_pixel = logits.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(most_probable(by_pixel), logits.argmax(0))
    for broken in (logits, by_pixel):
        broken[4, 3, 3] = torch.nan
        with pytest.raises(TrainingDiverged):
            most_probable(broken)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_how_maps_lie_in_memory_changes_nothing(precision):
    pixels, layers, found = picture(40, 60), local(), []
    for layout in (torch.contiguous_format, torch.channels_last):
        asked = dataclasses.replace(segmenter(Laid(layers, layout)), precision=precision)
        found.append(answer(asked, pixels, mode="slide", batch=1))
        assert found[-1].dtype == torch.float32
        labels = Segmenter(asked, Views(mode="slide", batch=1)).labels(InMemory(pixels))
        np.testing.assert_array_equal(labels, found[-1].argmax(0).numpy())
    torch.testing.assert_close(*found, atol=0, rtol=0)


class Laid(nn.Module):
    """Layers whose answer lies in memory as it is told to, in the precision of matrix products."""

    def __init__(self, layers, layout):
        super().__init__()
        self.layers, self.layout = layers, layout

    def forward(self, images):
        return self.layers(images).contiguous(memory_format=self.layout)


def test_regions_may_be_kept():
    asked, pixels = dataclasses.replace(segmenter(local()), precision="bf16"), picture(40, 60)
    kept = list(Segmenter(asked, Views(mode="slide", batch=1)).regions(InMemory(pixels)))
    wanted = answer(asked, pixels, mode="slide", batch=1)
    for top, left, logits in kept:
        torch.testing.assert_close(logits, wanted[:, top : top + logits.shape[1], left : left + logits.shape[2]])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_answers_that_are_not_finite_are_refused(value):
    asked, pixels = segmenter(pointwise()), picture(20, 20)
    asked.model.layers.bias.data[2] = value
    with pytest.raises(TrainingDiverged, match="not finite"):
        Segmenter(asked).labels(InMemory(pixels))


def test_models_and_views_that_do_not_fit_are_refused(tiny):
    model = tiny(num_classes=3)
    model.preprocess = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.2,) * 3)
    with pytest.raises(ConfigError, match="names the class of an image"):
        Segmenter(ready(model))
    with pytest.raises(ConfigError, match="'crop' leaves parts"):
        Segmenter(segmenter(pointwise(), fit="crop"))
    for fit in ("squash", "pad"):
        with pytest.raises(ConfigError, match="mode 'slide' needs a model trained on windows"):
            Segmenter(segmenter(pointwise(), fit=fit), Views(mode="slide"))
    for wrong in ({"overlap": 1.0}, {"scales": ()}, {"scales": (0.0,)}, {"batch": -1}, {"memory": 0}):
        with pytest.raises(ConfigError, match="views"):
            Views(**wrong)
    for wrong in ({"mode": "x"}, {"weight": "y"}):
        with pytest.raises((ConfigError, TypeCheckError), match=r"[Vv]iews"):  # the latter where types are checked
            Views(**wrong)


def test_the_training_mode_and_the_gradients_are_left_alone():
    asked = segmenter(pointwise())
    asked.model.train()
    Segmenter(asked).labels(InMemory(picture(20, 20)))
    assert asked.model.training
    assert torch.is_grad_enabled()
    assert isinstance(asked.model, Layers)


def test_memory_is_bounded():
    program = """
import torch
from segmenters import pointwise, segmenter
from swindow.devices import peak_memory
from swindow.rasters import InMemory
from swindow.sliding import Segmenter, Views
torch.set_num_threads(1)
asked = segmenter(pointwise(classes=150), classes=150, size=(128, 128))
pixels = torch.zeros(3, 512, 1024, dtype=torch.uint8)
cpu, views = torch.device("cpu"), Views(batch=1, memory=20 * 2**20)
Segmenter(asked, views).labels(InMemory(pixels[:, :140, :140].contiguous()))
before = peak_memory(cpu)
Segmenter(asked, views).labels(InMemory(pixels))
print(peak_memory(cpu) - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd="tests")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 60 * 2**20  # all logits at once: 315 MB
