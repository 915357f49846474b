"""What an explanation holds: plain arrays, each with its unit."""

import dataclasses
from pathlib import Path

from jaxtyping import Bool, Float, Integer, UInt8
from numpy import ndarray

from swindow.explanation.frame import Frame
from swindow.objects import Detections
from swindow.ops.windows import Size


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StageMaps:
    """Window attention of one stage on the grid of its tokens, block by block, padding left out."""

    stride: int
    """Side of a token, in pixels of the model's input."""
    window: Size
    """Height and width of the windows, in tokens."""
    shifts: tuple[Size, ...]
    """Rows and columns that each block rolled the map by."""
    received: tuple[Float[ndarray, "N H W"], ...]
    """What each token was given by all others, per block and head; 1 is a fair share."""
    padding: tuple[Float[ndarray, " N"], ...]
    """Share of the image's attention that went to padded tokens, per block and head."""

    @property
    def grid(self) -> Size:
        """Rows and columns of tokens."""
        rows, columns = self.received[0].shape[1:]
        return rows, columns


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PointStage:
    """What the token that holds the chosen point takes from where, in one stage."""

    token: Size
    """Its row and column on the stage's grid."""
    attention: tuple[Float[ndarray, "N H W"], ...]
    """What it takes from each token, per block and head; sums to 1, zero outside its window."""
    padding: tuple[Float[ndarray, " N"], ...]
    """Share of its attention that went to padded tokens, per block and head."""
    views: tuple[Bool[ndarray, "H W"], ...]
    """The tokens that it sees in each block: its window, less padding and what lies beyond the roll's seam."""
    rollout: Float[ndarray, "P Q"]
    """From which patches of the image it is made by the end of the stage, by attention roll-out; sums to 1."""
    reach: Bool[ndarray, "P Q"]
    """The patches that can influence it at all: the exact receptive field."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PointMaps:
    """A pixel of the photo, followed through the stages."""

    x: int
    y: int
    chosen: bool
    """False when nobody chose it: where Grad-CAM is strongest; the middle of a detector's box; of a segmenter, see
    `explain`."""
    stages: tuple[PointStage, ...]
    decoder: tuple[PointStage, ...] = ()
    """The same on its way through a U-Net's decoder, coarsest first."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Segmented:
    """What a segmenter answers, and where the explained photo lies in the picture that was given."""

    mask: Integer[ndarray, "h w"]
    """The class of each pixel of the photo, an index of `classes`."""
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    """Red, green and blue of each class, for pictures."""
    region: bool
    """Whether Grad-CAM explains all pixels of the photo that are predicted as the target, not the point alone."""
    picture: Size
    """Height and width of the picture given."""
    origin: tuple[int, int]
    """Where the photo begins in it, x and y: not (0, 0) where the picture is large and only a window was explained."""
    hirescam: tuple[Float[ndarray, "h w"], ...]
    """For each stage how much each pixel of the photo speaks for the class, every place by its own gradients where
    Grad-CAM has one weight for a channel's whole map (HiResCAM; Draelos & Carin 2020); 1 the most."""

    @property
    def windowed(self) -> bool:
        """Whether the photo is only a window of the picture."""
        return self.picture != self.mask.shape


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Detected:
    """What a detector finds, and why the one that is explained."""

    found: Detections
    """All of it, in pixels of the photo, on the CPU."""
    chosen: int
    """Which of them is explained: its rank, 0 the surest."""
    classes: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    """Red, green and blue of each class, for pictures."""
    hirescam: tuple[Float[ndarray, "h w"], ...]
    """For each stage how much each pixel of the photo speaks for the object, as in `Segmented`."""
    attention: tuple[Float[ndarray, "H W"], ...] = ()
    """Of a DETR, layer by layer of its decoder: the share that the object's query takes from each cell of the map that
    the decoder reads, mean over heads; sums to 1. What was padding is left out: it has none."""
    stride: int = 1
    """Side of such a cell, in pixels of the model's input."""

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The explained object's left, upper, right and lower edge, in pixels of the photo."""
        x1, y1, x2, y2 = self.found.boxes[self.chosen].tolist()
        return x1, y1, x2, y2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Why a model sees in a photo what it sees; `save` draws it. Stages count from 0 here and from 1 in pictures.

    Of a segmenter it is about one pixel, `point`, and the photo may be a window of a larger picture: see `segmented`.
    Of a detector it is about one of the objects that it finds: see `detected`.
    """

    name: str
    """What the picture is called."""
    photo: UInt8[ndarray, "h w C"]
    """The photo as read, before preprocessing."""
    frame: Frame
    """Where the model's input lies on the photo; `frame.seen()` is the part of the photo that it saw."""
    prediction: tuple[tuple[str, float], ...]
    """Up to five classes and their probabilities, best first; of a segmenter, those of the point. Of a detector, the
    classes and scores of the five surest objects."""
    target: str
    """The class that Grad-CAM explains; of a detector, the object's."""
    probability: float
    """Its probability; of a detector, the object's score."""
    gradcam: Float[ndarray, "h w"]
    """How much each pixel of the photo speaks for the class, 1 the most; 0 where nothing was seen."""
    gradcam_stage: int
    """The stage whose map Grad-CAM weighs."""
    rollout: Float[ndarray, "P Q"] | None
    """From which patches the mean of the last stage's tokens is made, by attention roll-out; sums to 1. Of a segmenter:
    the point's token, at the end of the encoder or of the U-Net's decoder; of a detector, at the end of the backbone.
    None without window attention: see `note`."""
    stages: tuple[StageMaps, ...]
    """Attention received, stage by stage; empty where the backbone has no window attention: see `note`."""
    point: PointMaps
    """One point's attention and receptive field."""
    decoder: tuple[StageMaps, ...] = ()
    """Attention received in a U-Net's decoder, coarsest first."""
    segmented: Segmented | None = None
    """Of a segmenter."""
    detected: Detected | None = None
    """Of a detector."""
    note: str = ""
    """What is not shown and why, one line; empty where nothing is missing."""

    def save(self, folder: str | Path) -> list[Path]:
        """Write every picture as PNG and a self-contained ``index.html`` into `folder`; return their paths, page first.

        Raises:
            DataError: the folder cannot be written.
            MissingExtra: matplotlib is not installed.
        """
        from swindow.explanation.page import write  # draws, and so needs matplotlib, which `explain` does not

        return write(self, Path(folder))
