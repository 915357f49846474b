"""Learning from a teacher besides the labels: knowledge distillation, for any teacher and any student.

soft: its probabilities at a temperature (Hinton et al. 2015; DeiT, equation 2). hard: its decisions (DeiT, equation 3).
token: its decisions, by a token of their own (DeiT, section 4). features: its maps (FitNets; Romero et al. 2015).
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from swindow.errors import ConfigError
from swindow.heads.classify import ClassifierOutputs
from swindow.heads.losses import at_least_fp32
from swindow.model import Model
from swindow.objectives.answers import KeptAnswers
from swindow.objectives.base import Judged, Moment, Objective
from swindow.objectives.features import Hints, Pairs, chosen_pairs, same_grids, watched
from swindow.objectives.streams import Stream
from swindow.objectives.teacher import Teacher
from swindow.objects import Targets
from swindow.preprocess import Preprocess
from swindow.shapes import IGNORE, Images

Kind = Literal["soft", "hard", "token", "features"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How a student learns from its teacher."""

    temperature: float = 3.0
    """What logits are divided by before soft labels are made of them (soft only)."""
    alpha: float = 0.5
    """The teacher's share of the loss of soft, hard and token; the labels have the rest. Features come on top."""
    features: float = 1.0
    """Weight of the maps' distance, beside the whole loss of the labels (features only)."""
    stages: tuple[int, ...] = ()
    """Stages of the student whose maps learn, from 0 (features only); empty pairs those with maps of one size, or else
    the last ones."""
    teacher_stages: tuple[int, ...] = ()
    """The stage of the teacher that each of them learns from."""
    cache: str = ""
    """A folder in which a classifier's answers are kept, to be read again by later runs; empty asks it every time."""
    cache_top: int = 0
    """How many of the largest answers about each image are kept; 0 keeps those of all classes."""

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"distillation.temperature is {self.temperature}; it must be above 0")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"distillation.alpha is {self.alpha}; it must lie in [0, 1]")
        if not self.features > 0:
            raise ConfigError(f"distillation.features is {self.features}; it must be above 0")
        if self.cache_top < 0:
            raise ConfigError(f"distillation.cache_top is {self.cache_top}; it must be at least 0")


class Taught(NamedTuple):
    """What a batch is to be learned to be: by its labels and by the teacher."""

    targets: Any
    answers: tuple[Tensor, ...]
    """Logits ``B K`` of the student's classes, or ``B K h w`` of every pixel; or a map ``B H W C`` for each pair."""


class Distilled(Objective):
    """Learn from labels and from the answers of a teacher, which is asked about the very images that are learned."""

    def __init__(
        self, model: Model, teacher: Teacher, kind: Kind, config: DistillConfig, kept: KeptAnswers | None = None
    ) -> None:
        """`model` must know its preprocessing, and its classes unless it learns features.

        Raises:
            ConfigError: what this teacher cannot teach this student.
        """
        super().__init__(model)
        self.teacher, self.kind, self.config, self.kept = teacher, kind, config, kept
        if model.preprocess is None:
            raise ConfigError(
                f"this {model.config.name} has no preprocessing; set model.preprocess before it is taught"
            )
        self.pixels: Preprocess = model.preprocess
        teacher.check_channels(self.pixels)
        self.order: list[int] = []
        self.hints: Hints | None = None
        if kind == "features":
            pairs = _pairs(model, teacher, self.pixels, config)
            hints = Hints(pairs, model.config.backbone.channels, teacher.config.backbone.channels)
            self.hints = hints.to(next(model.parameters()).dtype)
        else:
            _refuse_unfit(model, teacher, kind)
            self.order = teacher.order_of(model.classes or ())

    @torch.no_grad()
    def prepare(self, images: Images, targets: Any, moment: Moment) -> Any:
        """The targets and the teacher's answers; the targets alone where a batch is only looked at."""
        if not moment.train:
            return targets
        if self.hints is not None:
            frames = targets.frames if isinstance(targets, Targets) else None
            maps = self.teacher.maps(images, self.pixels, frames)
            return Taught(targets, tuple(maps[stage] for _, stage in self.hints.pairs))
        if self.kept is None:
            return Taught(targets, (self._ask(images),))
        answers = self.kept.answers(moment.epoch, moment.indices, lambda: self._ask(images))
        return Taught(targets, (answers.to(images.device, non_blocking=True),))

    def forward(self, images: Images, targets: Taught) -> Judged:
        """The losses of the labels by name, ``distillation`` or ``features``, and those that a backbone asks for."""
        labels, answers = targets
        frames = labels.frames if isinstance(labels, Targets) else None
        head = self.model.head
        if self.hints is not None:
            with watched(self.model.backbone) as maps:
                outputs, own = self.model.outputs_and_losses(images, frames)
            hint = self.config.features * self.hints(tuple(maps), answers, frames)
            losses = head.loss(outputs, labels) | {"features": hint}
            return Judged(losses | own, *head.right(outputs, labels))
        outputs, own = self.model.outputs_and_losses(images)
        said, learner = _who_learns(self.model, outputs, images)
        losses = {name: (1 - self.config.alpha) * loss for name, loss in head.loss(said, labels).items()}
        losses["distillation"] = self.config.alpha * self._distance(learner, answers[0], labels)
        return Judged(losses | own, *head.right(outputs, labels))

    def _ask(self, images: Images) -> Tensor:
        """The teacher's logits for the student's classes, in their order."""
        logits = self.teacher.logits(images, self.pixels)
        logits = logits[:, torch.tensor(self.order, device=logits.device)]
        if logits.ndim == 4 and logits.shape[2:] != images.shape[2:]:
            logits = F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)
        return logits

    def _distance(self, logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        counted = labels != IGNORE if logits.ndim == 4 else None
        if self.kind == "soft":
            return soft_loss(logits, teacher, self.config.temperature, counted)
        return hard_loss(logits, teacher, counted)


def soft_loss(
    logits: Float[Tensor, "B K *sizes"],
    teacher: Float[Tensor, "B K *sizes"],
    temperature: float,
    counted: Bool[Tensor, "B *sizes"] | None = None,
) -> Float[Tensor, ""]:
    """``τ² KL(softmax(teacher / τ) ‖ softmax(logits / τ))``, mean over images, or over the pixels that count.

    The factor keeps gradients as large as those of labels, whatever the temperature (Hinton et al. 2015, section 2).
    DeiT's own code divides by the number of classes, too.
    """
    wide = at_least_fp32(logits)
    own = (wide / temperature).log_softmax(1)
    theirs = (teacher.to(wide.dtype) / temperature).log_softmax(1)
    divergence = F.kl_div(own, theirs, reduction="none", log_target=True).sum(1)
    return temperature**2 * _mean(divergence, counted)


def hard_loss(
    logits: Float[Tensor, "B K *sizes"],
    teacher: Float[Tensor, "B K *sizes"],
    counted: Bool[Tensor, "B *sizes"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy with the class that is the likeliest to the teacher (DeiT, equation 3); never smoothed."""
    return _mean(F.cross_entropy(at_least_fp32(logits), teacher.argmax(1), reduction="none"), counted)


def distilled(
    model: Model, teacher: str | Path | Model, kind: Kind, config: DistillConfig, *, stream: Stream | None = None
) -> Distilled:
    """Teach `model` what a run, a file or a published name, or a model at hand, knows.

    `stream` is needed to keep answers: the training images, which they go by.

    Raises:
        CheckpointError: there is no such teacher.
        ConfigError: what it cannot teach this student, or answers to keep that are no classifier's.
    """
    known = Teacher.of(teacher) if isinstance(teacher, Model) else Teacher.at(teacher)
    objective = Distilled(model, known, kind, config)
    if not config.cache:
        return objective
    if kind == "features" or model.task != "classify" or stream is None:
        raise ConfigError(
            f"distillation.cache keeps a classifier's answers about labelled images, and this is to learn {kind} to "
            f"{model.task}; leave it out"
        )
    if stream.augment.repeats > 1:
        raise ConfigError(
            f"distillation.cache keeps one answer an image and epoch, and augment.repeats shows "
            f"{stream.augment.repeats} variants of each; leave one of them out"
        )
    facts = {
        "teacher": known.digest(),
        "seen": [str(known.preprocess), str(objective.pixels)],
        "classes": list(model.classes or ()),
        **stream.facts(),
    }
    objective.kept = KeptAnswers(config.cache, facts, classes=len(objective.order), top=config.cache_top)
    return objective


def _mean(values: Tensor, counted: Tensor | None) -> Tensor:
    if counted is None:
        return values.mean()
    return (values * counted).sum() / counted.sum().clamp_min(1)


def _who_learns(model: Model, outputs: Any, images: Images) -> tuple[Any, Tensor]:
    """Outputs that learn from the labels, and logits that learn from the teacher.

    With two classifiers that is one each (DeiT, section 4); else the same.
    """
    if isinstance(outputs, ClassifierOutputs) and outputs.distilled is not None:
        return outputs._replace(distilled=None), outputs.distilled
    size = (images.shape[2], images.shape[3])
    return outputs, cast(Tensor, model.head.decode(outputs, size))  # a detector is not taught by its logits


def _refuse_unfit(model: Model, teacher: Teacher, kind: Kind) -> None:
    """Raises ConfigError where logits cannot be learned, or not by a token."""
    name = model.config.name
    if model.task not in ("classify", "segment"):
        raise ConfigError(f"{name} is to {model.task}, which has no logits to learn {kind}; choose --distill features")
    if teacher.task != model.task:
        raise ConfigError(
            f"teacher {teacher.name} is to {teacher.task} and {name} to {model.task}; give one for the same task, or "
            "--distill features"
        )
    if kind == "token" and getattr(model.config.head, "pool", "") != "tokens":
        raise ConfigError(
            f"{name} has no distillation token; choose --model deit_tiny_distilled, deit_small_distilled or "
            "deit_base_distilled, a ViT with --fields pool tokens distillation_token True, or --distill hard"
        )


def _pairs(model: Model, teacher: Teacher, pixels: Preprocess, config: DistillConfig) -> Pairs:
    """Which stages learn from which: those that settings name, or those with maps of one size.

    Raises:
        ConfigError: stages that there are not.
    """
    own, theirs = model.config.backbone, teacher.config.backbone
    reached = model.config.head.stages(len(own.strides))[-1] + 1
    told = teacher.config.head.stages(len(theirs.strides))[-1] + 1
    if config.stages or config.teacher_stages:
        return chosen_pairs(config.stages, config.teacher_stages, reached, told)
    seen = teacher.size_for(pixels.size, pixels)
    return same_grids(own.strides[:reached], theirs.strides[:told], pixels.size[0], seen[0])
