"""What the processes of a `Company` are asked to do: tiny models learn for a few steps, as one of several or alone."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import profile

from detectors import tiny_detr, tiny_rcnn
from swindow.backbones import windowed
from swindow.data.augment import AugmentConfig
from swindow.data.loading import Batch
from swindow.distributed import ALONE, Plan, Ranks, joined, whole
from swindow.errors import TrainingDiverged
from swindow.learner import Learner
from swindow.model import Model
from swindow.objectives import Judged, Supervised
from swindow.objects import Frames, Objects
from swindow.optim import OptimConfig
from swindow.preprocess import Preprocess
from tiny_families import tiny_of
from tiny_segmenters import segmenter

PIXELS = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3)
OPTIM = OptimConfig(lr=3e-3, clip=1.0, ema=0.9)
IMAGES = 8
"""Of a batch, all processes together."""


@dataclasses.dataclass
class Course:
    """What a run of some steps came to; the same in every process."""

    losses: list[float]
    """Means over the processes."""
    norms: list[float]
    weights: dict[str, Tensor]
    """The usable model's, in one piece."""
    wrong: list[str]


def learned(strategy: str = "alone", *, steps: int = 20, **how: Any) -> Course:
    """A course of a tiny model; in the processes of a group they learn together, unless `strategy` is alone."""
    if strategy == "alone":
        return _course(_learner(ALONE, Plan(), **how), steps)
    with joined() as ranks:
        plan = Plan(strategy=strategy, **how.pop("plan", {}))
        return _course(_learner(ranks, plan, **how), steps)


def collectives(strategy: str, **how: Any) -> dict[str, int]:
    """How often the processes exchange something in the third step."""
    with joined() as ranks:
        learner = _learner(ranks, Plan(strategy=strategy), **how)
        _course(learner, 2)
        with profile() as seen:
            _course(learner, 1)
    names = ("allreduce", "reduce_scatter", "allgather")
    calls = [(event.key.removeprefix("c10d::").strip("_"), event.count) for event in seen.key_averages()]
    return {name: sum(count for key, count in calls if key.startswith(name)) for name in names}


def _learner(
    ranks: Ranks,
    plan: Plan,
    *,
    kind: str = "swin",
    optim: OptimConfig = OPTIM,
    double: bool = True,
    frozen: tuple[str, ...] = (),
    checkpointed: bool = False,
    compiled: bool = False,
    bad: dict[int, tuple[int, ...]] | None = None,
) -> Learner:
    torch.manual_seed(0)
    model = _model(kind).to(torch.float64 if double else torch.float32)
    model.preprocess = PIXELS
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen) if frozen else True)
    model.checkpoint_blocks(checkpointed)
    if compiled:
        for block in model.blocks():
            block.compile()
    objective = Supervised(model) if bad is None else Failing(model, bad.get(ranks.rank, ()))
    return Learner(
        model,
        optim,
        AugmentConfig(),
        total=20,
        seed=0,
        device=torch.device("cpu"),
        precision="fp32",
        objective=objective,
        ranks=ranks,
        plan=plan,
    )


def _model(kind: str) -> Model:
    if kind == "mask_rcnn":
        return tiny_rcnn()
    if kind == "detr":
        return tiny_detr()
    if kind in ("upernet", "unet"):
        return segmenter(kind)
    return tiny_of(kind)


class Failing(Supervised):
    """Learns from labels, and makes nothing of some steps: their loss is no number."""

    def __init__(self, model: Model, at: tuple[int, ...]) -> None:
        super().__init__(model)
        self.at, self.calls = at, 0

    def forward(self, images: Tensor, targets: Any) -> Judged:
        judged = super().forward(images, targets)
        self.calls += 1
        if self.calls - 1 in self.at:
            return judged._replace(losses={name: loss * torch.nan for name, loss in judged.losses.items()})
        return judged


def _course(learner: Learner, steps: int) -> Course:
    course = Course([], [], {}, [])
    for step in range(steps):
        report = learner.step([_batch(learner, step * 10 + number) for number in range(learner.optim.accumulate)])
        summed = learner.ranks.sums(torch.stack(list(report.losses.values())).sum())
        course.losses.append(float(summed) / learner.ranks.world)
        course.norms.append(float(report.gradient_norm))
        course.wrong.append(report.wrong)
    course.weights = {name: whole(tensor).detach().clone() for name, tensor in learner.usable.state_dict().items()}
    return course


def _batch(learner: Learner, number: int) -> Batch:
    """This process's share of the batch of that number; of one number they are always the same."""
    draws = torch.Generator().manual_seed(number % 30)
    images = torch.randint(0, 256, (IMAGES, 3, 16, 16), generator=draws, dtype=torch.uint8)
    kinds = torch.randint(0, 4, (IMAGES,), generator=draws)
    images[torch.arange(IMAGES), kinds % 3] //= 2 + kinds[:, None, None].to(torch.uint8)
    share = IMAGES // learner.ranks.world
    mine = slice(learner.ranks.rank * share, (learner.ranks.rank + 1) * share)
    task = learner.model.task
    if task == "detect":
        objects = tuple(_objects(int(kind), place) for place, kind in enumerate(kinds))
        frames = Frames((16, 16), ((16, 16),) * share)
        return Batch(images[mine], objects[mine], torch.arange(IMAGES)[mine], [], frames)
    labels = kinds if task == "classify" else (images[:, 0] // 64).long()
    return Batch(images[mine], labels[mine], torch.arange(IMAGES)[mine], [])


def _objects(kind: int, place: int) -> Objects:
    """Two objects in each picture of the first half of a batch, none in the second: in another process's share."""
    count = 2 if place < IMAGES // 2 else 0
    boxes = torch.tensor([[1.0, 1.0, 9.0, 9.0], [6.0, 5.0, 15.0, 14.0]])[:count]
    masks = torch.zeros(count, 16, 16, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    crowd, areas = torch.zeros(count, dtype=torch.bool), torch.full((count,), 64.0)
    return Objects(boxes=boxes, labels=torch.full((count,), kind), masks=masks, crowd=crowd, areas=areas)


def in_small_pieces(strategy: str, **how: Any) -> Course:
    """A course where a checkpointed block takes an image at a time, if it takes pieces at all."""
    before, windowed._PIECE = windowed._PIECE, 1
    try:
        return learned(strategy, **how)
    finally:
        windowed._PIECE = before


def diverged(strategy: str, bad: dict[int, tuple[int, ...]]) -> tuple[str, int, int]:
    """What is said when three steps in a row have no finite loss, and the steps that are kept and were good."""
    with joined() as ranks:
        learner = _learner(ranks, Plan(strategy=strategy), bad=bad)
        try:
            _course(learner, 20)
        except TrainingDiverged as error:
            return str(error), learner.position.step, learner.position.skipped
    return "", learner.position.step, learner.position.skipped


def norms_of(module: nn.Module) -> set[str]:
    """The names of the classes of its batch norms."""
    return {type(part).__name__ for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)}
