"""Pixels to model input and back."""

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from swindow.errors import ConfigError, DataError
from swindow.images import ImageLimits
from swindow.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess


def preprocess(size: tuple[int, int] = (32, 48), **fields: object) -> Preprocess:
    return Preprocess(size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, **fields)  # type: ignore[arg-type]


def ramps(height: int, width: int) -> torch.Tensor:
    """Channel 0 holds the row, channel 1 the column, both in 0..240."""
    y, x = torch.meshgrid(torch.linspace(0, 240, height), torch.linspace(0, 240, width), indexing="ij")
    return torch.stack([y, x, torch.zeros_like(x)]).round().to(torch.uint8)


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    rows=st.integers(1, 64),
    columns=st.integers(1, 64),
    fit=st.sampled_from(["crop", "squash", "pad"]),
    crop_ratio=st.floats(0.05, 1.0),
)
def test_any_size_becomes_the_size_asked_for(
    height: int, width: int, rows: int, columns: int, fit: str, crop_ratio: float
) -> None:
    resize = preprocess((rows, columns), fit=fit, crop_ratio=crop_ratio)
    image = torch.full((3, height, width), 200, dtype=torch.uint8)
    out = resize.resize(image)
    assert out.shape == (3, rows, columns)
    assert out.dtype == torch.uint8
    top, left, inner_height, inner_width = resize.region(height, width)
    if fit == "pad":  # the whole picture is inside, and the borders are as wide as the region says
        assert top <= 0
        assert left <= 0
        assert min(inner_height - height, inner_width - width) == pytest.approx(0, abs=1e-9)
    else:  # whole pixels inside the picture
        assert all(side == int(side) for side in (top, left, inner_height, inner_width))
        assert 0 <= top <= top + inner_height <= height
        assert 0 <= left <= left + inner_width <= width
        assert inner_height >= 1
        assert inner_width >= 1
        assert (out == 200).all()


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("source", [(240, 200), (61, 340), (333, 90)])
def test_region_says_which_source_point_each_pixel_shows(fit: str, source: tuple[int, int]) -> None:
    resize = preprocess((40, 60), fit=fit, crop_ratio=0.7)
    out = resize.resize(ramps(*source)).float().numpy()
    top, left, height, width = resize.region(*source)
    rows = top + (np.arange(40) + 0.5) * height / 40 - 0.5
    columns = left + (np.arange(60) + 0.5) * width / 60 - 0.5
    inside_rows = (rows > height / 40) & (rows < source[0] - 1 - height / 40)  # away from the edges, where ramps end
    inside_columns = (columns > width / 60) & (columns < source[1] - 1 - width / 60)
    assert inside_rows.sum() > 5
    assert inside_columns.sum() > 5
    seen = out[:, inside_rows][:, :, inside_columns]
    expected_rows = rows[inside_rows] * 240 / (source[0] - 1)
    expected_columns = columns[inside_columns] * 240 / (source[1] - 1)
    edge = slice(2, -2)  # a crop knows nothing of what lies beside it
    assert np.abs(seen[0] - expected_rows[:, None])[edge, edge].max() < 1.6
    assert np.abs(seen[1] - expected_columns)[edge, edge].max() < 1.6


def test_crop_is_the_usual_resize_and_centre_crop() -> None:
    """The published evaluation resizes the short side to 256 and cuts 224 out; we cut first."""
    draw = torch.Generator().manual_seed(0)
    smooth = torch.rand(1, 3, 40, 30, generator=draw) * 255
    image = torch.nn.functional.interpolate(smooth, size=(512, 640), mode="bicubic").clamp(0, 255).to(torch.uint8)[0]
    usual = tv.center_crop(tv.resize(image, 256, tv.InterpolationMode.BICUBIC, antialias=True), [224, 224])
    ours = preprocess((224, 224)).resize(image)
    difference = (usual.int() - ours.int()).abs()
    assert difference[:, 2:-2, 2:-2].max() <= 2
    assert difference.max() <= 16  # at the edge, what lies beside the crop no longer shines in


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("shape", [(1, 65_535), (65_535, 1), (1, 1), (3, 20_000), (1, 100_000)])
def test_slivers_take_no_memory(fit: str, shape: tuple[int, int]) -> None:
    assert preprocess((224, 224), fit=fit).resize(torch.zeros(3, *shape, dtype=torch.uint8)).shape == (3, 224, 224)


def test_what_would_grow_too_large_on_the_way_is_refused() -> None:
    tall = torch.zeros(3, 3000, 1, dtype=torch.uint8)
    limits = ImageLimits(max_resized_pixels=3000 * 48 - 1)
    with pytest.raises(DataError, match=r"resizing 3000 × 1 pixels to 32 × 48 takes 144,000 pixels on the way"):
        preprocess(fit="squash").resize(tall, limits=limits)
    assert preprocess(fit="crop").resize(tall, limits=limits).shape == (3, 32, 48)
    assert preprocess(fit="pad").resize(tall, limits=limits).shape == (3, 32, 48)


@given(height=st.integers(1, 3000), width=st.integers(1, 3000), short=st.integers(1, 900), more=st.integers(0, 600))
def test_within_keeps_the_aspect_and_both_limits(height: int, width: int, short: int, more: int) -> None:
    longest = short + more
    for size in ((short, longest), (longest, short)):
        tall, wide = preprocess(size, fit="within").input_size(height, width)
        assert max(tall, wide) <= longest
        assert min(tall, wide) <= short
        assert min(tall, wide) == short or max(tall, wide) == longest
        scale = preprocess(size, fit="within").scale(height, width)
        assert (tall, wide) == (max(1, round(height * scale)), max(1, round(width * scale)))


@pytest.mark.parametrize(
    ("source", "result"), [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((300, 900), (444, 1333))]
)
def test_within_is_what_detectors_are_fed(source: tuple[int, int], result: tuple[int, int]) -> None:
    """The usual sizes of COCO at 800 and 1333 pixels."""
    resize = preprocess((800, 1333), fit="within")
    assert resize.input_size(*source) == result
    assert resize.region(*source) == (0, 0, *source)
    out = resize.resize(ramps(*source))
    assert out.shape == (3, *result)
    rows = (torch.arange(result[0]) + 0.5) * source[0] / result[0] - 0.5
    seen = out[0, 3:-3, result[1] // 2].float()
    assert (seen - rows[3:-3] * 240 / (source[0] - 1)).abs().max() < 1.2


def test_within_is_restored_whole() -> None:
    resize = preprocess((20, 30), fit="within")
    maps = torch.rand(2, 4, 15, 30)
    back = resize.restore(maps, (60, 120))
    assert back.shape == (2, 4, 60, 120)
    expected = torch.nn.functional.interpolate(maps, size=(60, 120), mode="bilinear", align_corners=False)
    torch.testing.assert_close(back, expected)


@pytest.mark.parametrize(
    ("fit", "scale"), [("native", 1.5), ("short", 0.32), ("within", 0.24), ("pad", 0.24), ("crop", 0.8)]
)
def test_scale_is_pixels_for_each_of_the_pictures(fit: str, scale: float) -> None:
    resize = preprocess((32, 48), fit=fit, zoom=1.5, crop_ratio=0.4)
    assert resize.scale(100, 200) == pytest.approx(scale)
    with pytest.raises(ConfigError, match="'squash' has no one scale"):
        preprocess(fit="squash").scale(100, 200)


def test_a_batch_is_its_images_one_by_one() -> None:
    batch = torch.randint(0, 256, (5, 3, 50, 37), dtype=torch.uint8)
    for fit in ("crop", "squash", "pad"):
        resize = preprocess(fit=fit)
        torch.testing.assert_close(resize.resize(batch), torch.stack([resize.resize(image) for image in batch]))
        torch.testing.assert_close(resize(batch), torch.stack([resize(image) for image in batch]))


def test_the_border_is_the_mean_and_normalises_to_nothing() -> None:
    pad = preprocess((10, 10), fit="pad")
    out = pad(torch.full((3, 5, 20), 255, dtype=torch.uint8))
    assert out[:, 0].abs().max() < 0.5 / 255 / min(IMAGENET_STD) + 1e-6
    assert (out[:, 5] > 1).all()


def test_normalising_is_torchvisions() -> None:
    batch = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    usual = tv.normalize(tv.to_dtype(batch, torch.float32, scale=True), list(IMAGENET_MEAN), list(IMAGENET_STD))
    torch.testing.assert_close(preprocess((8, 8)).normalize(batch), usual, rtol=0, atol=2e-6)


def test_the_same_size_is_left_alone() -> None:
    image = torch.randint(0, 256, (3, 32, 48), dtype=torch.uint8)
    assert torch.equal(preprocess(crop_ratio=1.0).resize(image), image)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": (0, 4)}, "not a height and a width"),
        ({"std": (1.0,)}, "need one value a channel"),
        ({"std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"fit": "stretch"}, "not one of crop, squash, pad"),
        ({"crop_ratio": 0.0}, "not in (0, 1]"),
        ({"interpolation": "nearest"}, "not one of bilinear, bicubic"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, object], message: str) -> None:
    settings: dict[str, object] = {"size": (4, 4), "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    with pytest.raises((ConfigError, TypeCheckError)) as caught:  # the latter where the types are checked
        Preprocess(**(settings | fields))  # type: ignore[arg-type]
    assert message in str(caught.value) or caught.type is TypeCheckError
