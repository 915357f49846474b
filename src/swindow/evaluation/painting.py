"""How well a pretrained model paints what is hidden of images; the same parts are hidden whenever it is asked."""

import dataclasses
import math
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from swindow.data import Images
from swindow.data.hiding import JUDGED, cells_of, hidden_cells
from swindow.data.loading import eval_loader
from swindow.devices import autocast
from swindow.distributed import ALONE, Ranks
from swindow.errors import TrainingDiverged
from swindow.evaluation.sharing import gathered
from swindow.heads import Covered, SimMim, SimMimOutputs
from swindow.inference import ReadyModel, evaluating
from swindow.progress import Progress

SEED = 0
"""What is hidden of a judged image is a function of this and of its row: the same for every model with such cells."""
_LEAST = 1e-10  # a tenth of a grey level's thousandth: no painting is measured as better than 100 dB


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaintedScore:
    """How well one image was painted, over its hidden pixels."""

    name: str
    l1: float
    """Mean absolute error, in normalised values."""
    flat: float
    """That of a flat painting: the mean colour of what is seen."""
    psnr: float | None
    """Peak signal-to-noise ratio in decibels; None where no pixels are painted but differences from local means."""

    @property
    def explained(self) -> float:
        """See `PaintingEvaluation.explained`."""
        return _explained(self.l1, self.flat)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PaintingEvaluation:
    """What a pretrained model painted on the images of a split, and how good that is."""

    split: str
    """Which images: train, val, test, or all."""
    count: int
    """Images."""
    l1: float
    """Mean absolute error of hidden pixels in normalised values: what training lowers."""
    flat: float
    """The same of flat paintings, each in the mean colour of what is seen of the image."""
    psnr: float | None
    """Mean over the images of the peak signal-to-noise ratio, in decibels."""
    per_image: tuple[PaintedScore, ...]
    """Row i is image i."""
    classes: tuple[str, ...] = ()
    """None: no labels are looked at."""

    @property
    def explained(self) -> float:
        """The share of a flat painting's error that the model's does not have: 0 is as good as flat, 1 perfect.

        A worse painting is below 0 and above -1: the flat one's share of its error, less 1.
        """
        return _explained(self.l1, self.flat)

    @property
    def score(self) -> float:
        """What training maximises."""
        return self.explained

    @property
    def score_name(self) -> str:
        """What that is called."""
        return "explained"

    def worst(self, most: int) -> list[int]:
        """Rows of the images that were painted worst, the worst first."""
        return self._order()[:most]

    def best(self, most: int) -> list[int]:
        """Rows of the images that were painted best, the best first."""
        return self._order()[::-1][:most]

    def figures(self) -> dict[str, float]:
        """The numbers that a run records."""
        found = {"explained": self.explained, "loss": self.l1}
        return found if self.psnr is None else found | {"psnr": self.psnr}

    def summary(self, *, most: int = 20) -> dict[str, Any]:
        """The figures as plain values, ready for JSON."""
        figures = ("split", "count", "explained", "l1", "flat", "psnr")
        return {name: getattr(self, name) for name in figures}

    def table(self, *, most: int = 5) -> str:
        """The figures as lines of text, with the `most` images that were painted worst."""
        psnr = "" if self.psnr is None else f", {self.psnr:.2f} dB"
        lines = [
            f"{self.split}: {self.explained:.2%} of a flat painting's error explained on {self.count:,} images "
            f"(L1 {self.l1:.4f} of {self.flat:.4f}{psnr})"
        ]
        worst = [self.per_image[row] for row in self.worst(most)]
        return "\n".join(lines + [f"{score.explained:8.2%}  L1 {score.l1:.4f}  {score.name}" for score in worst])

    def _order(self) -> list[int]:
        return sorted(range(self.count), key=lambda row: (self.per_image[row].explained, row))


class Painted(NamedTuple):
    """One image as a model saw and painted it."""

    image: UInt8[Tensor, "C h w"]
    """All of it, at the model's size."""
    hidden: Bool[Tensor, "h w"]
    painting: UInt8[Tensor, "C h w"]
    """All that the model painted, of parts that it saw too."""

    @property
    def completed(self) -> UInt8[Tensor, "C h w"]:
        """What is seen of the image, and in the hidden parts the painting."""
        return torch.where(self.hidden, self.painting, self.image)


def judge_painter(
    asked: ReadyModel, images: Images, *, split: str, batch: int, workers: int, progress: Progress, ranks: Ranks = ALONE
) -> PaintingEvaluation:
    """Have a model paint parts of every image, and compare; each of several processes takes its share of the batches.

    Raises:
        DataError: an image that cannot be read.
        ConfigError: a size that is not made of whole cells.
        TrainingDiverged: the model answers with numbers that are not finite.
    """
    figures = torch.full((3, len(images)), torch.nan, dtype=torch.float64)
    deviations = torch.tensor(asked.preprocess.std, dtype=torch.float64)

    def compare() -> tuple[Tensor, Tensor]:
        mine = [torch.zeros(0, dtype=torch.int64)]
        progress.begin(f"evaluate {split}", len(images))
        try:
            for part in eval_loader(images, asked.preprocess, batch=batch, workers=workers, ranks=ranks):
                rows = torch.as_tensor(part.indices)
                head, outputs, covered = _painted(asked, part.images, rows.numpy())
                error, flat, squares = (x.double().cpu() for x in head.errors(outputs, covered))
                figures[:, rows] = torch.stack([error, flat, (squares * deviations.square()).mean(1)])
                mine.append(rows)
                progress.advance(len(rows) * ranks.world)  # the others are about as far
        finally:
            progress.end()
        return torch.cat(mine), figures[:, torch.cat(mine)]

    for rows, theirs in gathered(ranks, compare):
        figures[:, rows] = theirs
    error, flat, noise = figures
    _refuse_not_finite(error, images)
    ratios = [-10 * math.log10(max(one, _LEAST)) for one in noise.tolist()]
    normed = _head(asked).config.norm_target > 0
    scores = zip(images.names, error.tolist(), flat.tolist(), ratios, strict=True)
    return PaintingEvaluation(
        split=split,
        count=len(images),
        l1=float(error.mean()),
        flat=float(flat.mean()),
        psnr=None if normed else float(np.mean(ratios)),
        per_image=tuple(
            PaintedScore(name=str(name), l1=far, flat=plain, psnr=None if normed else ratio)
            for name, far, plain, ratio in scores
        ),
    )


def paint(asked: ReadyModel, images: Images, row: int) -> Painted:
    """What a model sees of one image when it is judged, and what it paints."""
    pixels = asked.preprocess.resize(images.read(row), limits=images.limits)
    head, outputs, covered = _painted(asked, pixels[None], np.asarray([row]))
    drawn = head.as_images(outputs, covered.images)[0].cpu()
    mean, std = (torch.tensor(values)[:, None, None] for values in (asked.preprocess.mean, asked.preprocess.std))
    painting = ((drawn * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return Painted(pixels, head.pixels(covered.cells)[0].cpu(), painting)


def _painted(asked: ReadyModel, pixels: Tensor, rows: np.ndarray) -> tuple[SimMim, SimMimOutputs, Covered]:
    """Outputs for some images of a split, and what they are compared with, on the model's device."""
    head = _head(asked)
    grid = cells_of(pixels.shape[2], pixels.shape[3], head.config.mask_patch, head.config.mask_ratio)
    cells = hidden_cells(SEED, JUDGED, rows, grid, head.config.mask_ratio).to(asked.device)
    with evaluating(asked.model), torch.inference_mode(), autocast(asked.device, asked.precision):
        images = asked.preprocess.normalize(pixels.to(asked.device, non_blocking=True))
        images = images.to(next(asked.model.parameters()).dtype)
        return head, asked.model.outputs(images, hidden=cells), Covered(images, cells)


def _head(asked: ReadyModel) -> SimMim:
    return cast(SimMim, asked.model.head)


def _explained(error: float, flat: float) -> float:
    """1 less the ratio of the errors, and where that is above 1 less than 0 but never as little as -1."""
    ratio = (error + 1e-9) / (flat + 1e-9)  # of images without any contrast both are 0
    return 1 - ratio if ratio <= 1 else 1 / ratio - 1


def _refuse_not_finite(error: Tensor, images: Images) -> None:
    unpainted = torch.nonzero(~error.isfinite()).flatten().tolist()
    if unpainted:
        raise TrainingDiverged(
            f"{images.names[unpainted[0]]}: the model's painting is not finite (and so for {len(unpainted)} of "
            f"{len(images)} images); try precision fp32, or an earlier checkpoint"
        )
