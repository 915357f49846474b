"""How a segmenter looks at pictures, as settings; `sliding` does it."""

import dataclasses
from typing import Literal

from swindow.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
    """How a segmenter looks at a picture."""

    mode: Literal["auto", "whole", "slide"] = "auto"
    """The whole picture at once, at its own size; or a window at a time. auto is windows where the model was trained on
    them (preprocess fit native), and where it was judged on whole pictures (short) also for those of more than four
    windows' area or whose logits would not fit `memory`."""
    overlap: float = 1 / 3
    """Share of a window's side that it has in common with the next, at least."""
    weight: Literal["gaussian", "plain"] = "gaussian"
    """What a pixel counts within its window: by its distance from the centre, sigma an eighth of a side (as nnU-Net);
    or all the same (as mmsegmentation)."""
    scales: tuple[float, ...] = (1.0,)
    """Sizes at which each picture or window is seen; with more views than one, their probabilities are averaged."""
    flip: bool = False
    """Each is also seen mirrored left to right."""
    batch: int = 0
    """Windows, or small pictures of one size, that are asked together; 0 for as many as make 512 × 512 pixels."""
    memory: int = 512 * 2**20
    """Bytes that the sums between windows may take, and the logits of a picture at once; never less than a window."""

    def __post_init__(self) -> None:
        if self.mode not in ("auto", "whole", "slide"):
            raise ConfigError(f"views mode {self.mode!r} is not one of auto, whole, slide")
        if self.weight not in ("gaussian", "plain"):
            raise ConfigError(f"views weight {self.weight!r} is not one of gaussian, plain")
        if not 0 <= self.overlap <= 0.9:
            raise ConfigError(f"views overlap {self.overlap} is not in [0, 0.9]")
        if not self.scales or not all(0 < scale <= 16 for scale in self.scales):
            raise ConfigError(f"views scales {self.scales} are not one or more numbers in (0, 16]")
        if self.batch < 0:
            raise ConfigError(f"views batch is {self.batch}; give a number of windows, or 0 to leave it open")
        if self.memory < 1:
            raise ConfigError(f"views memory is {self.memory}; it is at least 1 byte")
