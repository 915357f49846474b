"""How large a batch may be: steps of a learner that is thrown away, with more and more images."""

import dataclasses
import time
from collections.abc import Callable

import torch
from torch import Tensor

from swindow.data.loading import Batch
from swindow.devices import forget_peak_memory, peak_memory
from swindow.errors import OutOfMemory
from swindow.learner import Learner
from swindow.memory import ADVICE, available_memory, is_out_of_memory, resident_memory, sharers
from swindow.objects import Frames

GAIN = 1.03
"""How much faster twice the images must be to be worth it."""
SHARE = 0.9
"""Of the memory that is free, what a step may take: the rest is for what varies from step to step."""
SAMPLE = 16
"""Real images that fake batches are made of."""


@dataclasses.dataclass(frozen=True)
class Fitting:
    """What was found."""

    batch: int
    """Images of one process."""
    images_per_second: float
    """Of the largest batch that was tried and fitted."""
    reason: str
    """Why no more."""


def find_batch(learner: Learner, sample: Batch, *, usual: int, most: int) -> Fitting:
    """The batch of one process: `usual` where it fits, else a half and so on; more, up to `most`, where it is faster.

    Each size is tried by two whole training steps. On a CPU a step at the limit could end the process or take minutes,
    so that sizes are tried as long as they are faster, and memory is extrapolated from there on.

    Raises:
        OutOfMemory: not even the fewest images fit.
    """
    device = learner.device
    room = Room(device)

    def attempt(images: int) -> float:
        batch = enlarged(sample, images)
        learner.step([batch])
        began = time.perf_counter()
        learner.step([batch]).gradient_norm.item()  # waits for the device
        return images / (time.perf_counter() - began)

    return grown(attempt, room, usual=usual, most=most, careful=device.type == "cpu")


class Room:
    """How much memory steps took, and what more images would."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        free = available_memory(device)
        self.limit = None if free is None else _held(device) + SHARE * free / (sharers() if device.type == "cpu" else 1)
        self.seen: list[tuple[int, int]] = []

    def note(self, images: int) -> None:
        """Remember the peak, which is that of a step with so many images."""
        self.seen.append((images, peak_memory(self.device)))

    def holds(self, images: int) -> bool:
        """Whether so many images are expected to fit, by what each of those before took."""
        if self.limit is None or not self.seen:
            return True
        latest, peak = self.seen[-1]
        pairs = zip(self.seen, self.seen[1:], strict=False)
        each = max(((b - a) / (more - less) for (less, a), (more, b) in pairs), default=0.0)
        return peak + each * (images - latest) <= self.limit


def grown(attempt: Callable[[int], float], room: Room, *, usual: int, most: int, careful: bool) -> Fitting:
    """Double the images while they fit, and above `usual`, or anywhere if `careful`, while they are faster.

    `attempt` takes a step and returns images per second.

    Raises:
        OutOfMemory: not even the fewest images fit.
    """
    sizes = sizes_up_to(usual, most)
    best, speed, reason = 0, 0.0, "no more are wanted"
    for size in sizes:
        now = tried(attempt, size, room) if room.holds(size) else None
        if now is None:
            reason, sizes = "more do not fit", [smaller for smaller in sizes if smaller < size]
            break
        if best and now < GAIN * speed and (careful or size > usual):
            reason = "more are not faster"
            break
        best, speed = size, now
    if not best:
        raise OutOfMemory(f"no training step fits into memory on {room.device}; {ADVICE}")
    if careful and sizes:  # above what is fastest, up to the usual, a size costs no time: only memory counts
        best = max((size for size in sizes if best <= size <= usual and room.holds(size)), default=best)
    return Fitting(best, speed, reason)


def tried(attempt: Callable[[int], float], images: int, room: Room) -> float | None:
    """Images per second; None where memory ends."""
    forget_peak_memory(room.device)
    try:
        speed = attempt(images)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        if room.device.type == "cuda":
            torch.cuda.empty_cache()
    room.note(images)
    return speed


def sizes_up_to(usual: int, most: int) -> list[int]:
    """`usual`, its halves down to 2 or 3 images and its doubles, up to `most`; rising."""
    sizes = [usual]
    while sizes[0] > 3:
        sizes.insert(0, sizes[0] // 2)
    while sizes[-1] * 2 <= most:
        sizes.append(sizes[-1] * 2)
    return [size for size in sizes if size <= most] or [most]


def enlarged(batch: Batch, images: int) -> Batch:
    """A batch of so many images, the given ones again and again."""
    rows = torch.arange(images) % len(batch.images)
    labels = batch.labels[rows] if isinstance(batch.labels, Tensor) else tuple(batch.labels[row] for row in rows)
    frames = batch.frames and Frames(batch.frames.canvas, tuple(batch.frames.sizes[row] for row in rows))
    return Batch(batch.images[rows], labels, batch.indices[rows], [], frames)


def _held(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else resident_memory()
