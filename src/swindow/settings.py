"""All settings of a training run, and what follows from them alone."""

import dataclasses
import itertools
from pathlib import Path
from typing import Literal

from swindow.data.annotations import ObjectConfig
from swindow.data.augment import AugmentConfig
from swindow.data.masks import MaskConfig
from swindow.distributed import Plan
from swindow.errors import ConfigError
from swindow.objectives import DistillConfig
from swindow.optim import OptimConfig
from swindow.preprocess import IMAGENET_MEAN, IMAGENET_STD
from swindow.sliding import Views


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All settings of a training run."""

    data: str = ""
    """A folder of class folders, an IDX folder, a CSV or Parquet table, a torchvision dataset's name, or digits; for
    maps of classes a folder of images and masks or of volumes, or ade20k:, cityscapes: or voc: before a folder; for
    objects a COCO JSON, or a folder with one a split, or Pascal VOC's or YOLO's."""
    task: Literal["auto", "classify", "segment", "detect", "pretrain"] = "auto"
    """What to learn; auto goes by what lies in the data. To pretrain takes no labels: parts of images are hidden and to
    be painted (SimMIM)."""
    out: str = ""
    """Where the run goes; empty for runs/DATA-MODEL."""
    recipe: str = "auto"
    """The recipe that the other settings started from."""
    model: str = "swin_tiny"
    """Which model; `swindow models` lists them."""
    fields: dict[str, bool | int | float | str | tuple[int, ...] | tuple[float, ...]] = dataclasses.field(
        default_factory=dict
    )
    """Fields of the model that differ from its variant, such as patch 2 window 4 (in TOML also depths = [2, 2])."""
    weights: str | None = None
    """A checkpoint to start from; a head for other classes is left out."""
    size: int = 224
    """Side of the square that the model sees, in pixels; to find objects, the short side of a picture."""
    longest: int = 0
    """To find objects (fit within): the most that the long side may have, in pixels; 0 is 5/3 of size."""
    channels: int = 3
    """1 to train on grey images, 3 on colour; arrays may have any number."""
    fit: Literal["crop", "squash", "pad", "native", "short", "within"] = "crop"
    """How an image becomes a square in evaluation: its centre, the whole squeezed, or the whole with borders. To name
    every pixel: its own size times zoom (native), or its short side as long as size (short). To find objects: native,
    or its sides within size and longest (within)."""
    zoom: float = 1.0
    """Enlargement of images before the model sees them (fit native)."""
    crop_ratio: float = 0.875
    """Side of the centre crop as a share of the short side."""
    epochs: int = 100
    """Passes over the training images."""
    steps: int = 0
    """Steps of the whole run, in place of epochs; 0 leaves it to them."""
    batch: int | Literal["auto"] = 64
    """Images per forward pass, of all processes together; with optim.accumulate, several make a step. auto tries how
    many fit."""
    drop_path: float = 0.1
    """Stochastic depth of the last block."""
    label_smoothing: float = 0.1
    """Share of each target spread evenly over the classes."""
    optim: OptimConfig = OptimConfig()
    """How weights move."""
    augment: AugmentConfig = AugmentConfig()
    """How training images vary."""
    masks: MaskConfig = MaskConfig()
    """How masks are read."""
    objects: ObjectConfig = ObjectConfig()
    """What is done with boxes that are not as they should be."""
    teacher: str = ""
    """A run or weights to learn from besides the labels: distillation."""
    distill: Literal["soft", "hard", "token", "features"] = "soft"
    """What is learned from the teacher: its probabilities, its decisions, its decisions by a token of their own (DeiT),
    or its maps."""
    distillation: DistillConfig = DistillConfig()
    """How it is learned."""
    views: Views = Views()
    """How a picture is covered by the model's windows when its pixels are judged."""
    val_fraction: float = 0.1
    """Share of the training images held out when the data has no validation split."""
    seed: int = 0
    """Everything random is a function of it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of matrix products; auto is bf16 where the device has it natively."""
    workers: int = -1
    """Processes that load images; -1 decides by the data and the machine."""
    shuffle_window: int = 8192
    """Of images in shards, how many are mixed at a time: as many neighbouring shards as hold them."""
    cache: str = ""
    """A folder for copies of whole shards that lie elsewhere, each fetched once; empty reads them where they are."""
    compile: bool = False
    """Compile the blocks with torch.compile."""
    checkpointing: bool = False
    """Trade time for memory: compute activations again in the backward pass."""
    parallel: Plan = Plan()
    """How the model is spread over several processes."""
    eval_every: int = 1
    """Epochs between evaluations."""
    patience: int = 0
    """Stop after this many evaluations without a better one; 0 never does."""
    max_minutes: float = 0.0
    """Stop after this many minutes; 0 never does."""
    max_steps: int = 0
    """Stop after this many steps in all, the schedule unchanged; 0 never does."""
    save_minutes: float = 10.0
    """Minutes between saves within an epoch."""
    save_steps: int = 0
    """Steps between saves, besides; 0 leaves it to the minutes."""
    save_behind: bool = False
    """Write while training goes on: it waits for a copy in memory only."""
    keep: int = 2
    """Saved states to keep, the newest ones; at least 2, so that there is one before a damaged one."""
    max_bad: int = 0
    """Unreadable training images to skip before giving up; 0 stops at the first."""
    max_pixels: int = 200_000_000
    """Larger images are refused before they are decoded."""
    tensorboard: bool = True
    """Write TensorBoard event files."""
    report: bool = True
    """Write report.html at the end."""

    def __post_init__(self) -> None:
        lowest = {"size": 1, "epochs": 1, "batch": 1, "eval_every": 1, "workers": -1, "max_bad": 0, "max_pixels": 1}
        lowest |= {"patience": 0, "max_minutes": 0, "max_steps": 0, "save_minutes": 0, "channels": 1, "steps": 0}
        lowest |= {"longest": 0, "save_steps": 0, "keep": 2, "shuffle_window": 1}
        for name, least in lowest.items():
            if getattr(self, name) != "auto" and getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("drop_path", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")
        for name in ("val_fraction", "crop_ratio"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must lie in (0, 1]")
        if 0 < self.longest < self.size:
            raise ConfigError(
                f"longest is {self.longest} and size {self.size}: the long side cannot be the shorter one"
            )
        if self.val_fraction == 1:
            raise ConfigError("val_fraction is 1; that leaves nothing to train on")

    @property
    def images(self) -> int:
        """`batch` as a number.

        Raises:
            ConfigError: it is auto, and nobody has tried yet what fits.
        """
        if isinstance(self.batch, str):
            raise ConfigError(f"batch is {self.batch}; training finds a number for it, anything else needs one")
        return self.batch


# What may differ when a run is resumed: it changes when, where and how far the work is done, not what is computed.
FREE = frozenset(
    {"out", "recipe", "device", "workers", "cache", "compile", "checkpointing", "patience", "max_minutes", "max_steps"}
    | {"save_minutes", "max_bad", "max_pixels", "tensorboard", "report"}
    | {"parallel", "save_steps", "save_behind", "keep"}
)


def pixel_statistics(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pixel values in 0..1: ImageNet's, as every published Swin was trained with; else theirs'
    average for every channel."""
    if channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (0.449,) * channels, (0.226,) * channels


def default_out(config: TrainConfig, *, resume: bool = False) -> str:
    """Where a run goes when nobody says: ``runs/DATA-MODEL``, with a number while that is taken.

    To resume, the newest of those that are there.
    """
    name = f"{Path(config.data).stem or 'data'}-{config.model}"
    free, taken = "", ""
    for number in itertools.count(1):
        free = f"runs/{name}{'' if number == 1 else f'-{number}'}"
        if not Path(free).exists():
            break
        taken = free
    return taken if resume and taken else free
