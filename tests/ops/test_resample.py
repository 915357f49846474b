"""Tables and kernels at another size, against their definitions and against other libraries."""

import pytest
import torch
from timm.layers import resize_rel_pos_bias_table_simple
from timm.models import adapt_input_conv
from torch.nn import functional as F

from swindow.errors import ShapeError
from swindow.ops import resample

PAIRS = [((7, 7), (12, 12)), ((12, 12), (7, 7)), ((7, 7), (8, 8)), ((4, 8), (8, 4)), ((1, 1), (3, 3)), ((5, 3), (5, 3))]


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_a_bias_table_is_resampled_over_its_offsets(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = torch.randn((2 * old[0] - 1) * (2 * old[1] - 1), 3)
    found = resample.bias_table(table, old, new)
    assert found.shape == ((2 * new[0] - 1) * (2 * new[1] - 1), 3)
    if old == new:
        assert torch.equal(found, table)
    for head in range(3):  # one picture at a time, from the definition of bicubic resizing
        picture = table[:, head].reshape(1, 1, 2 * old[0] - 1, 2 * old[1] - 1)
        expected = F.interpolate(picture, size=(2 * new[0] - 1, 2 * new[1] - 1), mode="bicubic")
        torch.testing.assert_close(found[:, head], expected.flatten())


@pytest.mark.parametrize(("old", "new"), [pair for pair in PAIRS if pair[0][0] == pair[0][1]])
def test_a_bias_table_is_timm_s(old: tuple[int, int], new: tuple[int, int]) -> None:
    table = torch.randn((2 * old[0] - 1) ** 2, 3)
    shape = ((2 * new[0] - 1) * (2 * new[1] - 1), 3)
    expected = resize_rel_pos_bias_table_simple(table, new, shape)
    torch.testing.assert_close(resample.bias_table(table, old, new), expected)


def test_half_precision_keeps_its_type_and_a_linear_table_stays_linear() -> None:
    rows = torch.arange(13.0)[:, None].expand(13, 13).reshape(-1, 1)  # grows with the vertical offset alone
    found = resample.bias_table(rows.half(), (7, 7), (12, 12))
    assert found.dtype == torch.float16
    inner = found.reshape(23, 23)[4:-4]
    assert (inner == inner[:, :1]).all()
    assert (inner[1:, 0] > inner[:-1, 0]).all()


def test_a_table_of_another_window_is_refused() -> None:
    with pytest.raises(ShapeError, match="a bias table of 169 rows is not for 8x8 windows"):
        resample.bias_table(torch.zeros(169, 3), (8, 8), (7, 7))


def test_places_are_resampled_over_the_grid() -> None:
    table = torch.randn(4, 6, 5)
    assert resample.place_table(table, (4, 6)) is table
    expected = F.interpolate(table.permute(2, 0, 1)[None], size=(7, 3), mode="bicubic")[0].permute(1, 2, 0)
    torch.testing.assert_close(resample.place_table(table, (7, 3)), expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_a_first_convolution_sees_the_same_in_grey_images(channels: int) -> None:
    kernel, grey = torch.randn(5, 3, 4, 4), torch.randn(2, 1, 8, 8)
    adapted = resample.input_channels(kernel, channels)
    assert adapted.shape == (5, channels, 4, 4)
    found = F.conv2d(grey.expand(2, channels, 8, 8), adapted, stride=4)
    if channels % 3 == 0 or channels == 1:  # else the first channels count once more, as in timm
        torch.testing.assert_close(found, F.conv2d(grey.expand(2, 3, 8, 8), kernel, stride=4))
    torch.testing.assert_close(adapted, adapt_input_conv(channels, kernel))


@pytest.mark.parametrize("size", [(3, 4), (7, 9), (14, 5), (20, 31), (1, 1), (2, 13)])
def test_a_grid_whose_size_a_compiler_does_not_know_is_resampled_as_torch_does(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    table = torch.randn(1, 2 + 7 * 9, 5, dtype=torch.float32)
    known = resample.sequence_table(table, (7, 9), size, prefix=2)
    monkeypatch.setattr(resample, "undecided", lambda *_: True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = resample.sequence_table(table, (7, 9), size, prefix=2)
    torch.testing.assert_close(found, known, atol=1e-5, rtol=0)
