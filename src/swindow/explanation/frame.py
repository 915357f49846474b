"""Where the model's input lies on the photo, and maps laid back from the one onto the other."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from swindow.ops.windows import Size

Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """A photo of `photo` (height, width) pixels whose rectangle `region` was stretched to `input` pixels.

    Positions are continuous: pixel i covers [i, i + 1). The region (top, left, height, width) may reach beyond the
    photo, where preprocessing has padded it.
    """

    photo: Size
    region: Box
    input: Size

    def lay(self, heat: Float[ndarray, "H W"], stride: int) -> Float[ndarray, "h w"]:
        """A map of tokens that are `stride` input pixels wide, on the photo's pixels; zero where nothing was seen.

        Bilinear between the centres of the tokens' cells, constant from the outermost centres to the border.
        """
        heat = heat.astype(np.float32)
        (top, row), (left, column) = (self._taps(axis, heat.shape[axis], stride) for axis in (0, 1))
        heat = heat[top] * (1 - row)[:, None] + heat[np.minimum(top + 1, heat.shape[0] - 1)] * row[:, None]
        heat = heat[:, left] * (1 - column) + heat[:, np.minimum(left + 1, heat.shape[1] - 1)] * column
        return heat * self.seen()

    def cells(self, heat: ndarray, stride: int) -> ndarray:
        """Like `lay` without smoothing: each pixel has the value of the token whose cell its centre lies in."""
        rows, columns = (
            np.clip(self._positions(axis) // stride, 0, heat.shape[axis] - 1).astype(int) for axis in (0, 1)
        )
        return np.where(self.seen(), heat[rows][:, columns], np.zeros((), heat.dtype))

    def seen(self) -> Bool[ndarray, "h w"]:
        """The photo's pixels whose centres lie in the region."""
        rows, columns = ((self._positions(axis) >= 0) & (self._positions(axis) < self.input[axis]) for axis in (0, 1))
        return rows[:, None] & columns

    def token(self, x: int, y: int, stride: int) -> Size:
        """Row and column of the token whose cell holds the centre of a pixel of the photo."""
        return int(self._positions(0)[y] // stride), int(self._positions(1)[x] // stride)

    def pixel(self, token: Size, stride: int) -> tuple[int, int]:
        """The photo's pixel (x, y) in the middle of a token's cell, or the nearest that was seen."""
        y, x = (self._nearest(axis, (place + 0.5) * stride) for axis, place in enumerate(token))
        return x, y

    def box(self, mask: Bool[ndarray, "H W"], stride: int) -> Box:
        """The rectangle (top, left, height, width) on the photo around the tokens of `mask`, cut off at the input."""
        edges = []
        for axis in (0, 1):
            places = np.flatnonzero(mask.any(1 - axis))
            scale = self.region[2 + axis] / self.input[axis]
            ends = (places[0] * stride, min((places[-1] + 1) * stride, self.input[axis]))
            edges.append([self.region[axis] + end * scale for end in ends])
        (top, bottom), (left, right) = edges
        return top, left, bottom - top, right - left

    def scaled(self, photo: Size) -> "Frame":
        """The same frame on the same photo at another size."""
        down, across = photo[0] / self.photo[0], photo[1] / self.photo[1]
        top, left, height, width = self.region
        return Frame(photo=photo, region=(top * down, left * across, height * down, width * across), input=self.input)

    def part(self, top: int, left: int, photo: Size) -> "Frame":
        """The same frame on a part of the photo that begins at (top, left)."""
        region = (self.region[0] - top, self.region[1] - left, *self.region[2:])
        return Frame(photo=photo, region=region, input=self.input)

    def _nearest(self, axis: int, position: float) -> int:
        places = self._positions(axis)
        seen = (places >= 0) & (places < self.input[axis])
        return int(np.where(seen, np.abs(places - position), np.inf).argmin())

    def _positions(self, axis: int) -> ndarray:
        """Input coordinates of the centres of the photo's pixels along an axis."""
        centres = np.arange(self.photo[axis]) + 0.5
        return (centres - self.region[axis]) * (self.input[axis] / self.region[2 + axis])

    def _taps(self, axis: int, tokens: int, stride: int) -> tuple[ndarray, ndarray]:
        """For each pixel the token before it and the weight of the one after it."""
        place = np.clip(self._positions(axis) / stride - 0.5, 0, tokens - 1)
        before = np.floor(place).astype(int)
        return before, (place - before).astype(np.float32)
