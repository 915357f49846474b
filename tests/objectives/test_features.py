"""Maps between stages: which learn from which, by which formula, through what."""

import pytest
import torch

from conftest import tiny
from swindow.errors import ConfigError
from swindow.objectives import DistillConfig, distilled
from swindow.objectives.features import chosen_pairs, distance, same_grids, watched
from swindow.objects import Frames
from teaching import known, moment, pupil
from tiny_families import FAMILIES, tiny_of
from tiny_segmenters import segmenter

LABELS = torch.tensor([0, 3])


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_distance_is_the_mean_square_from_the_whitened_map():
    own, theirs = normal(2, 3, 4, 6), 7 * normal(2, 3, 4, 6, seed=1) + 5
    total = 0.0
    for place in theirs.flatten(0, 2).unbind():
        place -= place.mean()
        place /= (place.square().mean() + 1e-5).sqrt()
    for own_place, place in zip(own.flatten(0, 2), theirs.flatten(0, 2), strict=True):
        total += float((own_place - place).square().mean())
    again = 7 * normal(2, 3, 4, 6, seed=1) + 5
    assert float(distance(own, again)) == pytest.approx(total / 24, rel=1e-10)
    assert float(distance(torch.zeros_like(own), again)) == pytest.approx(1, rel=1e-3)  # to know nothing


def test_another_grid_is_resampled():
    constant = torch.randn(2, 1, 1, 6).expand(2, 8, 6, 6)
    assert float(distance(torch.zeros(2, 4, 3, 6), constant)) == pytest.approx(1, rel=1e-3)
    plain = torch.nn.functional.layer_norm(constant[:, :4, :3], (6,))
    assert float(distance(plain, constant)) < 1e-6
    halves = torch.randn(2, 4, 4, 6)
    doubled = halves.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert float(distance(torch.nn.functional.layer_norm(halves, (6,)), doubled)) < 0.5


def test_cells_outside_of_pictures_count_nowhere():
    own, theirs = normal(2, 4, 4, 6), normal(2, 4, 4, 6, seed=1)
    frames = Frames((16, 16), ((16, 8), (8, 16)))
    alone = [distance(own[:1, :, :2], theirs[:1, :, :2]), distance(own[1:, :2], theirs[1:, :2])]
    assert float(distance(own, theirs, frames)) == pytest.approx(float(sum(alone) / 2), rel=1e-12)


@pytest.mark.parametrize(
    ("student", "teacher", "size", "seen", "pairs"),
    [
        ((4, 8, 16, 32), (4, 8, 16, 32), 224, 224, ((0, 0), (1, 1), (2, 2), (3, 3))),
        ((4, 8, 16, 32), (16, 16, 16, 16), 224, 224, ((2, 3),)),  # of a ViT's stages the last
        ((4, 8), (2, 4), 28, 28, ((0, 1),)),
        ((2, 4), (4, 8, 16, 32), 28, 224, ((0, 2), (1, 3))),  # as large in cells, not in pixels
        ((3, 6), (4, 8), 28, 28, ((1, 1),)),  # none alike: the last of each
    ],
)
def test_maps_of_one_size_are_paired(student, teacher, size, seen, pairs):
    assert same_grids(student, teacher, size, seen) == pairs


def test_stages_can_be_named():
    assert chosen_pairs((0, 1), (2, 0), 2, 3) == ((0, 2), (1, 0))
    for student, teacher, says in [
        ((0,), (), r"stages \(0,\) and teacher_stages \(\) are to be as many"),
        ((2,), (0,), r"stages \(2,\) must lie in 0 to 1: there are 2"),
        ((0,), (3,), r"teacher_stages \(3,\) must lie in 0 to 2: there are 3"),
    ]:
        with pytest.raises(ConfigError, match=says):
            chosen_pairs(student, teacher, 2, 3)
    student, teacher = pupil(), known(tiny(dim=16))
    objective = distilled(student, teacher, "features", DistillConfig(stages=(1,), teacher_stages=(0,)))
    assert {name: tuple(one.shape) for name, one in objective.own().items()} == {
        "hints.projections.0.weight": (16, 16),
        "hints.projections.0.bias": (16,),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_backbone_shows_its_maps_while_it_answers(family):
    model = tiny_of(family)
    images = torch.randn(2, 3, 32, 32)
    with watched(model.backbone) as maps:
        answer = model(images)
    torch.testing.assert_close(answer, model(images))
    for seen, expected in zip(maps, model.backbone.stage_maps(images), strict=True):
        torch.testing.assert_close(seen, expected)
    count = len(maps)
    model(images)
    assert len(maps) == count  # nobody watches any more


@pytest.mark.parametrize("family", FAMILIES)
def test_every_classifier_learns_from_any_backbone(family):
    student = known(tiny_of(family), size=(32, 32), classes=("a",) * 5)
    teacher = known(tiny(num_classes=2), size=(32, 32), classes=None)  # of other classes, and without names
    objective = distilled(student.train(), teacher, "features", DistillConfig(features=2.0))
    images = torch.randn(2, 3, 32, 32)
    losses = objective(images, objective.prepare(images, LABELS, moment(2))).losses
    losses["features"].backward()
    for parameter in objective.own().values():
        assert parameter.grad.abs().max() > 0
    assert max(float(p.grad.abs().max()) for p in student.backbone.parameters() if p.grad is not None) > 0
    assert "cross_entropy" in losses


def test_a_segmenter_learns_features_from_a_vit():
    student, teacher = known(segmenter("unet")), known(tiny_of("vit"), size=(16, 16))
    objective = distilled(student, teacher, "features", DistillConfig())
    images, labels = torch.randn(2, 3, 16, 16), torch.randint(-1, 5, (2, 16, 16))
    losses = objective(images, objective.prepare(images, labels, moment(2))).losses
    assert losses["features"] > 0
    torch.testing.assert_close(
        losses["cross_entropy"], student.head.loss(student.outputs(images), labels)["cross_entropy"]
    )


def test_checkpointing_shows_the_same_maps_and_gradients():
    found = []
    for thrifty in (False, True):
        torch.manual_seed(0)
        student, teacher = pupil(), known(tiny(dim=16))
        student.train().checkpoint_blocks(thrifty)
        objective = distilled(student, teacher, "features", DistillConfig())
        images = torch.randn(2, 3, 16, 16)
        losses = objective(images, objective.prepare(images, LABELS, moment(2))).losses
        torch.stack(list(losses.values())).sum().backward()
        found.append({name: p.grad for name, p in objective.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)
