"""A segmenter asked about a picture of any size: whole, or through a window that slides over it, in bounded memory.

Windows lie evenly from edge to edge, with at least the asked overlap (as nnU-Net places them; windows of one step that
end with one moved back inside would be as many, but the last two would overlap most, and that overlap is what has to be
kept). A picture smaller than the window along a side is put into the middle of one, in the mean colour, as training
does with it: a small model learns where padding begins, and is lost at other sizes (docs/log.md). Only ``mode="whole"``
shows a picture at its own size, whatever that is.

A pixel's logits are the weighted mean over the windows that cover it. Weights are products of one factor a row and one
a column, so each window's are divided by the sums beforehand, and where a single window covers a pixel they are 1.
Windows come row by row. What is finished leaves as a `Region`; what a later window adds to waits in two buffers, the
columns shared with the next window and the rows shared with the next row of windows. If the rows, as wide as the
picture, would take more than `Views.memory`, the picture is cut into vertical strips one after the other, and the
windows across a cut are asked twice; sums are taken in the same order and answers are the same to the bit, as long as a
model answers the same to the same window in another batch (it does when windows are asked one at a time).
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from swindow.errors import ConfigError, ShapeError, TrainingDiverged
from swindow.inference import ReadyModel
from swindow.preprocess import Preprocess
from swindow.rasters import Raster
from swindow.views import Views as Views  # what a Segmenter is given is had from here too

WHOLE = 4
"""Pictures of at most so many times the area of a window are seen whole where that is how the model was judged."""
_AT_ONCE = 512 * 512  # pixels of small windows or pictures that are asked together


class Region(NamedTuple):
    """Finished logits of a rectangle of a picture."""

    top: int
    left: int
    logits: Float[Tensor, "K h w"]
    """float32; log-probabilities where several views were averaged."""


class Segmenter:
    """A model and how it looks at pictures.

    Raises:
        ConfigError: no segmentation model; a preprocessing that leaves parts of the picture out; or ``mode="slide"``
            with one that fits every picture into one input (squash, pad).
    """

    def __init__(self, asked: ReadyModel, views: Views | None = None) -> None:
        self.asked, self.views = asked, views or Views()
        config, fit = asked.model.config, asked.preprocess.fit
        if config.head.task != "segment":
            raise ConfigError(
                f"{config.name} names the class of an image, not of its pixels; give a segmentation model"
            )
        if fit == "crop":
            raise ConfigError(
                "fit 'crop' leaves parts of the picture out; set the preprocess fit to native, short, squash or pad"
            )
        if self.views.mode == "slide" and fit not in ("native", "short"):
            raise ConfigError(
                f"views mode 'slide' needs a model trained on windows; this one sees every picture at "
                f"{asked.preprocess.size} (fit {fit!r}): use mode 'whole'"
            )
        self.num_classes = len(asked.classes)
        self.dtype = np.uint8 if self.num_classes <= 255 else np.uint16

    def regions(self, raster: Raster, *, on_cpu: bool = True) -> Iterator[Region]:
        """Logits of the whole picture, at its own pixels, in rectangles that do not overlap and miss nothing.

        With ``on_cpu=False`` they stay on the model's device, and are valid until the next one is asked for.

        Raises:
            DataError: pixels that cannot be read.
        """
        found = self._whole(raster) if self.sees_whole(raster.height, raster.width) else self._slide(raster)
        for region in found:
            yield Region(region.top, region.left, region.logits.to("cpu", copy=True)) if on_cpu else region
            del region  # or its window would stay in memory while the next is asked for

    def labels(self, raster: Raster, out: np.ndarray | None = None) -> np.ndarray:
        """The most probable class of each pixel, ``h w``, as uint8 (uint16 above 255 classes).

        `out` is an array to write them to, such as a numpy memmap.

        Raises:
            DataError: pixels that cannot be read.
            ShapeError: an `out` of another size or of a type that cannot hold the classes.
            TrainingDiverged: logits that are not finite.
        """
        size = (raster.height, raster.width)
        out = np.empty(size, self.dtype) if out is None else self._usable(out, size)
        for region in self.regions(raster, on_cpu=False):
            labels = most_probable(region.logits).cpu().numpy()
            out[region.top : region.top + labels.shape[0], region.left : region.left + labels.shape[1]] = labels
            del region
        return out

    def logits(self, raster: Raster) -> Float[Tensor, "K h w"]:
        """The logits of a whole picture in one tensor; of a large one they take K × h × w × 4 bytes."""
        out = torch.empty(self.num_classes, raster.height, raster.width)
        for top, left, logits in self.regions(raster, on_cpu=False):
            out[:, top : top + logits.shape[1], left : left + logits.shape[2]] = logits
        return out

    def sees_whole(self, height: int, width: int) -> bool:
        """Whether a picture of this size is seen at once."""
        if self.views.mode != "auto":
            return self.views.mode == "whole"
        preprocess = self.asked.preprocess
        size = preprocess.input_size(height, width)
        if preprocess.fit == "native":
            return size[0] <= preprocess.size[0] and size[1] <= preprocess.size[1]
        if preprocess.fit != "short":
            return True
        area = math.prod(size)
        return area <= WHOLE * math.prod(preprocess.size) and 4 * self.num_classes * area <= self.views.memory

    def at_once(self, height: int, width: int) -> int:
        """How many inputs of this size are asked together."""
        area = math.prod(self._framed(height, width))
        within = min(_AT_ONCE // area, self.views.memory // (4 * self.num_classes * area))
        return self.views.batch or max(1, within)

    def see(self, pixels: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """What the model says about inputs as it takes them; the log of the mean probability over several views."""
        if self._once:
            return self._maps(pixels).float()
        size = (pixels.shape[2], pixels.shape[3])
        views = list(itertools.product(self.views.scales, (False, True) if self.views.flip else (False,)))
        total: Tensor | None = None
        with torch.inference_mode():
            for scale, mirrored in views:
                found = self._seen(pixels, size, scale, mirrored).log_softmax(dim=1)
                # Sums of logarithms: a probability may be too small for a float32 and its logarithm is not.
                total = found if total is None else torch.logaddexp(total, found, out=total)
            assert total is not None  # noqa: S101 - there is a scale
            return total.sub_(math.log(len(views)))

    def restored(self, maps: Float[Tensor, "1 K H W"], size: tuple[int, int]) -> Iterator[Region]:
        """The logits of an input back at its picture's pixels; in bands where all at once is over `memory`."""
        height, width = size
        rows = max(1, self.views.memory // (4 * self.num_classes * width))
        if rows >= height:
            yield Region(0, 0, self.asked.preprocess.restore(maps, size)[0])
            return
        for top in range(0, height, rows):
            yield Region(top, 0, _band(maps, self.asked.preprocess, size, top, min(top + rows, height)))

    @property
    def _once(self) -> bool:
        """Whether there is but one view of everything."""
        return self.views.scales == (1.0,) and not self.views.flip

    def _seen(self, pixels: Tensor, size: tuple[int, int], scale: float, mirrored: bool) -> Tensor:
        """Logits of one view, brought back to the input's pixels."""
        other = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        seen = _fitted(self.asked.preprocess, other).resize(pixels)
        maps = self._maps(seen.flip(-1) if mirrored else seen).float()
        maps = maps.flip(-1) if mirrored else maps
        return maps if other == size else F.interpolate(maps, size=size, mode="bilinear", align_corners=False)

    def _maps(self, pixels: UInt8[Tensor, "B C H W"]) -> Float[Tensor, "B K H W"]:
        """The model's logits of inputs, in its precision; of those smaller than a window, from the middle of one."""
        preprocess, (height, width) = self.asked.preprocess, (pixels.shape[2], pixels.shape[3])
        rows, columns = self._framed(height, width)
        if (rows, columns) == (height, width):
            return self.asked.maps(pixels)
        top, left = (rows - height) // 2, (columns - width) // 2
        colour = pixels.new_tensor([round(255 * mean) for mean in preprocess.mean])[:, None, None]
        canvas = colour.expand(len(pixels), -1, rows, columns).contiguous()
        canvas[..., top : top + height, left : left + width] = pixels
        return self.asked.maps(canvas)[..., top : top + height, left : left + width]

    def _framed(self, height: int, width: int) -> tuple[int, int]:
        """The size at which inputs of this size are asked: at least a window's, unless each is seen as it is."""
        size, fit = self.asked.preprocess.size, self.asked.preprocess.fit
        if self.views.mode == "whole" or fit not in ("native", "short"):
            return height, width
        return max(height, size[0]), max(width, size[1])

    def _usable(self, out: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        if out.shape != size or out.dtype.kind not in "iu" or np.iinfo(out.dtype).max < self.num_classes - 1:
            raise ShapeError(
                f"out is {out.shape} of {out.dtype}; give {size} of integers up to {self.num_classes - 1}, such as "
                f"{np.dtype(self.dtype)}"
            )
        return out

    def _whole(self, raster: Raster) -> Iterator[Region]:
        size = (raster.height, raster.width)
        pixels = self.asked.preprocess.resize(raster.window(0, 0, *size)[None])
        yield from self.restored(self.see(pixels), size)

    def _slide(self, raster: Raster) -> Iterator[Region]:
        grid = _Grid(raster, self.asked.preprocess, self.views)
        for strip in grid.strips(self.num_classes, self.views.memory):
            yield from self._strip(raster, grid, strip)

    def _window_maps(self, grid: "_Grid", pixels: Tensor) -> Tensor:
        """Logits of windows at their own pixels; in the model's precision where nothing is computed with them."""
        if self._once and grid.seen.size == grid.window:
            return self._maps(pixels)
        return grid.seen.restore(self.see(grid.seen.resize(pixels)), grid.window)

    def _strip(self, raster: Raster, grid: "_Grid", strip: "_Strip") -> Iterator[Region]:
        sums = _Sums(grid, strip)
        places = [(row, column) for row in range(len(grid.rows.starts)) for column in range(strip.begin, strip.end)]
        batch = self.at_once(*grid.seen.size)
        for first in range(0, len(places), batch):
            chosen = places[first : first + batch]
            maps = self._window_maps(grid, grid.read(raster, chosen))
            for number, (row, column) in enumerate(chosen):
                finished = sums.add(maps[number], row, column)
                if finished is not None:
                    yield Region(grid.rows.starts[row], grid.columns.starts[column], finished)
                    del finished
            del maps


def most_probable(logits: Float[Tensor, "K h w"]) -> Int64[Tensor, "h w"]:
    """The class of the largest logit of each pixel, the first of equals.

    Raises:
        TrainingDiverged: logits that are not finite.
    """
    with torch.inference_mode():
        best, labels = logits.max(dim=0) if _by_pixel(logits) else _largest(logits)
        if not bool(best.isfinite().all()):
            raise TrainingDiverged("the model's answer is not finite; try precision fp32, or an earlier checkpoint")
    return labels


def _largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """``logits.max(dim=0)``, in half the time where each class lies by itself."""
    best, labels = logits[0].clone(), torch.zeros_like(logits[0], dtype=torch.int64)
    for k in range(1, len(logits)):
        labels.masked_fill_(logits[k] > best, k)
        torch.maximum(best, logits[k], out=best)  # what is not a number stays so
    return best, labels


class _Axis(NamedTuple):
    """Windows along one side of a picture."""

    length: int
    window: int
    starts: tuple[int, ...]
    shares: Float[Tensor, "n window"]
    """What each pixel of each window counts: over all windows, 1."""

    def done(self, place: int) -> int:
        """First pixels of a window that no later one covers."""
        return self.window if place == len(self.starts) - 1 else self.starts[place + 1] - self.starts[place]

    @property
    def shared(self) -> int:
        """The most pixels that a window has in common with the next."""
        return max((self.window - self.done(place) for place in range(len(self.starts) - 1)), default=0)


class _Strip(NamedTuple):
    """Columns of windows that are asked, ``begin`` to ``end``, to finish what lies under ``own`` to ``end``."""

    begin: int
    own: int
    end: int


class _Grid:
    """Where the windows of a picture lie and at what size the model sees them."""

    def __init__(self, raster: Raster, preprocess: Preprocess, views: Views) -> None:
        size = (raster.height, raster.width)
        zoom = preprocess.input_size(*size)[0] / size[0] if preprocess.fit == "short" else preprocess.zoom
        full = tuple(max(1, round(side / zoom)) for side in preprocess.size)
        self.rows, self.columns = (
            _axis(length, min(window, length), views) for length, window in zip(size, full, strict=True)
        )
        self.window = (self.rows.window, self.columns.window)
        self.seen = _fitted(
            preprocess,
            tuple(
                side if window == most else max(1, round(window * zoom))
                for side, window, most in zip(preprocess.size, self.window, full, strict=True)
            ),
        )

    def read(self, raster: Raster, places: list[tuple[int, int]]) -> UInt8[Tensor, "B C h w"]:
        """The pixels of some windows."""
        return torch.stack(
            [raster.window(self.rows.starts[row], self.columns.starts[column], *self.window) for row, column in places]
        )

    def strips(self, num_classes: int, memory: int) -> list[_Strip]:
        """As few as keep the sums within `memory`; as narrow as one column of windows if nothing does."""
        count = len(self.columns.starts)
        for parts in range(1, count + 1):
            bounds = [round(part * count / parts) for part in range(parts + 1)]
            strips = [self._reaching(own, end) for own, end in itertools.pairwise(bounds)]
            most = max(self.width(strip) for strip in strips)
            kept = self.rows.shared * most + self.columns.shared * self.rows.window
            if 4 * num_classes * kept <= memory:
                break
        return strips

    def width(self, strip: _Strip) -> int:
        """Columns of pixels that a strip finishes."""
        return self._column(strip.end) - self._column(strip.own)

    def _reaching(self, own: int, end: int) -> _Strip:
        """With every window that covers pixels of a strip."""
        starts, border = self.columns.starts, self._column(own)
        begin = next(place for place, start in enumerate(starts) if start + self.columns.window > border)
        return _Strip(min(begin, own), own, end)

    def _column(self, place: int) -> int:
        starts = self.columns.starts
        return starts[place] if place < len(starts) else self.columns.length


class _Sums:
    """Weighted sums of the windows of a strip, as far as later windows add to them.

    Maps lie in memory class by class or, as convolutions leave them, pixel by pixel; the sums lie as the maps do, since
    to add across the two takes ten times as long.
    """

    def __init__(self, grid: _Grid, strip: _Strip) -> None:
        self.rows, self.columns, self.strip = grid.rows, grid.columns, strip
        self.left, self.width = grid.columns.starts[strip.own], grid.width(strip)
        self.below: Tensor | None = None
        self.beside: Tensor | None = None
        self.window: Tensor | None = None

    @torch.inference_mode()
    def add(self, logits: Float[Tensor, "K h w"], row: int, column: int) -> Float[Tensor, "K _ _"] | None:
        """Take in a window (it may be written to); what it finishes, from its upper left corner on, if that is ours.

        That is valid until the next window comes.
        """
        rows, columns = self.rows, self.columns
        if self.below is None or self.beside is None:
            self.below = _empty(logits, rows.shared, self.width)
            self.beside = _empty(logits, rows.window, columns.shared)
        logits = self._weighted(logits, rows.shares[row][:, None] * columns.shares[column][None, :])
        if column > self.strip.begin:
            before = columns.window - columns.done(column - 1)
            logits[:, :, :before] += self.beside[:, :, :before]
        done = columns.done(column)
        self.beside[:, :, : columns.window - done] = logits[:, :, done:]
        if column < self.strip.own:
            return None
        ours, left = logits[:, :, :done], columns.starts[column] - self.left
        waiting = self.below[:, :, left : left + done]
        if row:
            above = rows.window - rows.done(row - 1)
            ours[:, :above] += waiting[:, :above]
        done = rows.done(row)
        waiting[:, : rows.window - done] = ours[:, done:]
        return ours[:, :done]

    def _weighted(self, logits: Tensor, weights: Tensor) -> Tensor:
        """In float32; in place, or where the precision is another in a place that is kept, since a new one is slow."""
        if logits.dtype == torch.float32:
            return logits.mul_(weights.to(logits.device))
        if self.window is None:
            self.window = _empty(logits, logits.shape[1], logits.shape[2])
        return self.window.copy_(logits).mul_(weights.to(logits.device))


def _by_pixel(logits: Tensor) -> bool:
    """Whether the classes of a pixel lie beside each other in memory."""
    return logits.stride(0) == 1 and len(logits) > 1


def _empty(logits: Tensor, height: int, width: int) -> Tensor:
    """Room for float32 ``K h w``, as `logits` lie in memory."""
    if _by_pixel(logits):
        return torch.empty(height, width, len(logits), device=logits.device).permute(2, 0, 1)
    return torch.empty(len(logits), height, width, device=logits.device)


def _axis(length: int, window: int, views: Views) -> _Axis:
    step = max(1.0, window * (1 - views.overlap))
    count = math.ceil((length - window) / step - 1e-9) + 1
    starts = tuple(round(place * (length - window) / max(count - 1, 1)) for place in range(count))
    profile = torch.ones(window, dtype=torch.float64)
    if views.weight == "gaussian":  # at the edge, four sigma away, 3e-4: it never vanishes
        away = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
        profile = torch.exp(-0.5 * (away / (window / 8)) ** 2)
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + window] += profile
    return _Axis(length, window, starts, torch.stack([profile / total[s : s + window] for s in starts]).float())


def _band(
    maps: Float[Tensor, "1 K H W"], preprocess: Preprocess, size: tuple[int, int], top: int, bottom: int
) -> Float[Tensor, "K _ w"]:
    """Rows `top` to `bottom` of what ``preprocess.restore(maps, size)`` gives, made alone."""
    height, width = size
    place = preprocess.region(height, width)
    down, right = place.height / maps.shape[2], place.width / maps.shape[3]  # the picture's pixels for one of the input
    first, left = round(-place.top / down), round(-place.left / right)
    last = first + round(height / down) - 1
    rows = ((torch.arange(top, bottom, dtype=torch.float64) + 0.5 - place.top) / down - 0.5).clamp(first, last)
    upper = rows.floor().long()
    lower, part = (upper + 1).clamp(max=last), (rows - upper).to(maps)[:, None]
    inner = maps[..., left : left + round(width / right)]
    with torch.inference_mode():
        between = torch.lerp(inner[:, :, upper.to(maps.device)], inner[:, :, lower.to(maps.device)], part)
        return F.interpolate(between, size=(bottom - top, width), mode="bilinear", align_corners=False)[0]


def _fitted(preprocess: Preprocess, size: tuple[int, ...]) -> Preprocess:
    """The same, stretching what it is given to a size."""
    return dataclasses.replace(preprocess, size=(size[0], size[1]), fit="squash")
