"""Painting as an objective: what is hidden goes by the sample, whoever shows it, and labels play no part."""

import numpy as np
import pytest
import torch

from conftest import tiny
from swindow.data.augment import AugmentConfig
from swindow.data.loading import Batch
from swindow.errors import ConfigError
from swindow.learner import Learner
from swindow.model import build
from swindow.objectives import MaskedImages, Moment
from swindow.optim import OptimConfig
from swindow.preprocess import Preprocess


def painter():
    torch.manual_seed(0)
    shape = {"dim": 8, "depths": (2, 2), "num_heads": (2, 4), "window": 4, "patch": 2, "drop_path": 0.0}
    model = build("simmim_swin_micro", mask_patch=4, **shape)
    model.preprocess = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
    return model


def moment(indices, *, epoch=0, seed=0, train=True):
    return Moment(seed, epoch, 0, np.asarray(indices), train)


def batch(indices):
    images = torch.stack([torch.full((3, 16, 16), 7 * index % 256, dtype=torch.uint8) for index in indices])
    images[:, :, ::3] += 40
    return Batch(images, torch.zeros(len(indices), dtype=torch.int64), torch.tensor(indices), [])


def test_shares_of_a_batch_hide_what_the_batch_would():
    """Two processes with four images each hide the same cells as one with eight."""
    objective, images = MaskedImages(painter()), torch.randn(8, 3, 16, 16)
    whole = objective.prepare(images, None, moment(range(8)))
    shares = [objective.prepare(images[:4], None, moment(part)) for part in (range(4), range(4, 8))]
    assert torch.equal(torch.cat(shares), whole)
    assert whole.sum((1, 2)).tolist() == [10] * 8  # of 16 cells, 0.6 rounded up


def test_an_image_is_hidden_otherwise_every_epoch_and_always_alike_when_it_is_looked_at():
    objective, images = MaskedImages(painter()), torch.randn(8, 3, 16, 16)
    first, second = (objective.prepare(images, None, moment(range(8), epoch=epoch)) for epoch in (0, 1))
    assert not torch.equal(first, second)
    looks = [objective.prepare(images, None, moment(range(8), epoch=epoch, train=False)) for epoch in (0, 1)]
    assert torch.equal(*looks)
    assert not torch.equal(looks[0], first)


def test_the_mean_over_equal_shares_is_the_loss_of_the_batch():
    """So that processes that average their gradients learn what one alone would."""
    objective = MaskedImages(painter()).double().train()
    images = torch.randn(8, 3, 16, 16).double()
    cells = objective.prepare(images, None, moment(range(8)))
    whole = objective(images, cells).losses["l1"]
    shares = [objective(images[part], cells[part]).losses["l1"] for part in (slice(4), slice(4, 8))]
    assert abs(sum(shares) / 2 - whole) < 1e-6 * whole


def test_labels_play_no_part_and_nothing_learns_beside_the_model():
    objective, images = MaskedImages(painter()), torch.randn(2, 3, 16, 16)
    assert objective.own() == {}
    found = [objective.prepare(images, labels, moment([3, 4])) for labels in (None, torch.tensor([1, 2]))]
    assert torch.equal(*found)
    assert {name.split(".")[0] for name, _ in objective.named_parameters()} == {"model"}


def test_a_learner_learns_to_paint_and_repeats_itself_to_the_bit():
    def course():
        model = painter()
        learner = Learner(
            model,
            OptimConfig(lr=5e-3, warmup=0.0, ema=0.9),
            AugmentConfig(),
            total=30,
            seed=0,
            device=torch.device("cpu"),
            precision="fp32",
            objective=MaskedImages(model),
        )
        losses = []
        for step in range(30):
            learner.position.epoch = step
            losses.append(float(learner.step([batch(list(range(8)))]).losses["l1"]))
        return losses, {name: x.clone() for name, x in learner.tensors().items()}

    (losses, state), (again, other) = course(), course()
    assert losses == again
    assert all(torch.equal(x, other[name]) for name, x in state.items())
    assert losses[-1] < 0.6 * losses[0]


def test_another_model_or_size_is_refused():
    with pytest.raises(ConfigError, match="swin_micro is to classify and paints nothing; choose a simmim_… model"):
        MaskedImages(tiny())
    with pytest.raises(ConfigError, match="images of 18x16 pixels are not whole cells of mask_patch 4"):
        MaskedImages(painter()).prepare(torch.randn(1, 3, 18, 16), None, moment([0]))
