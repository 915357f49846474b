"""The bricks: what goes where, and with which probability."""

import math

import pytest
import torch
from torch import nn

from swindow.layers import DropPath, Mlp, PatchEmbed, PatchMerge, drop_path_rates, init_weights


def test_patches_are_projected_one_by_one() -> None:
    embed = PatchEmbed(in_channels=2, dim=5, patch=3)
    images = torch.randn(2, 2, 6, 9)
    tokens = embed(images)
    assert tokens.shape == (2, 2, 3, 5)
    patch = images[1, :, 3:6, 6:9].flatten()
    expected = embed.norm(embed.proj.weight.flatten(1) @ patch + embed.proj.bias)
    torch.testing.assert_close(tokens[1, 1, 2], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(7, 8), (8, 5), (1, 1), (5, 11)])
def test_an_image_that_is_no_multiple_of_the_patch_is_padded_right_and_below(size: tuple[int, int]) -> None:
    embed = PatchEmbed(in_channels=3, dim=4, patch=4)
    images = torch.randn(1, 3, *size)
    whole = torch.zeros(1, 3, *(math.ceil(side / 4) * 4 for side in size))
    whole[:, :, : size[0], : size[1]] = images
    assert torch.equal(embed(images), embed(whole))


def test_merging_concatenates_each_cell_column_by_column() -> None:
    merge = PatchMerge(3)
    x = torch.randn(2, 4, 6, 3)
    cell = torch.cat([x[1, 2, 4], x[1, 3, 4], x[1, 2, 5], x[1, 3, 5]])
    merged = merge(x)
    assert merged.shape == (2, 2, 3, 6)
    torch.testing.assert_close(merged[1, 1, 2], merge.reduction(merge.norm(cell)))


@pytest.mark.parametrize("grid", [(3, 4), (4, 5), (1, 1), (7, 7)])
def test_merging_pads_odd_grids_with_zeros(grid: tuple[int, int]) -> None:
    merge = PatchMerge(2)
    x = torch.randn(1, *grid, 2)
    even = torch.zeros(1, grid[0] + grid[0] % 2, grid[1] + grid[1] % 2, 2)
    even[:, : grid[0], : grid[1]] = x
    assert torch.equal(merge(x), merge(even))


def test_the_mlp_is_two_layers_with_the_exact_gelu() -> None:
    mlp = Mlp(4, 8)
    x = torch.randn(3, 4)
    hidden = mlp.fc1(x)
    torch.testing.assert_close(mlp(x), mlp.fc2(hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))))


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    drop = DropPath(0.25).train()
    out = drop(torch.ones(20_000, 2, 3))
    survived = out.flatten(1)
    assert ((survived == 0).all(1) | (survived == 1 / 0.75).all(1)).all()
    assert survived.mean().item() == pytest.approx(1.0, abs=0.02)
    assert (survived[:, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)


def test_drop_path_does_nothing_in_eval_or_at_rate_zero() -> None:
    x = torch.randn(4, 2)
    assert DropPath(0.9).eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_drop_path_draws_anew_each_time() -> None:
    drop = DropPath(0.5).train()
    assert not torch.equal(drop(torch.ones(64, 1)), drop(torch.ones(64, 1)))


@pytest.mark.parametrize("depths", [(2, 2, 6, 2), (1,), (3, 1)])
def test_drop_path_grows_linearly_over_all_blocks(depths: tuple[int, ...]) -> None:
    rates = drop_path_rates(0.3, depths)
    assert tuple(map(len, rates)) == depths
    flat = [rate for stage in rates for rate in stage]
    assert flat == pytest.approx([0.3 * i / max(len(flat) - 1, 1) for i in range(len(flat))])


def test_initialisation_is_the_published_one() -> None:
    layers = nn.Sequential(nn.Linear(400, 300), nn.LayerNorm(7), nn.Linear(3, 2, bias=False))
    nn.init.ones_(layers[0].bias)
    nn.init.zeros_(layers[1].weight)
    layers.apply(init_weights)
    assert layers[0].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert layers[0].weight.mean().item() == pytest.approx(0.0, abs=2e-4)
    assert (layers[0].bias == 0).all()
    assert (layers[1].weight == 1).all()
    assert (layers[1].bias == 0).all()
