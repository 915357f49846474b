"""``swindow explain``."""

import dataclasses
from pathlib import Path
from typing import Annotated

from swindow.cli.arguments import Positional, parse
from swindow.explanation import explain


@dataclasses.dataclass(frozen=True)
class Explain:
    """Show what a model looks at in an image: stitched window attention, a point's view, Grad-CAM.

    Of a segmenter, why the pixel at the point is of its class; of a detector, why an object was found, and of a DETR
    what its query attends to.
    """

    run: Annotated[str, Positional]
    """A run folder or a checkpoint."""
    image: Annotated[str, Positional]
    """The image."""
    out: Path = Path("explanation")
    """Folder for the pictures and index.html."""
    point: tuple[int, int] | None = None
    """x and y of the pixel to follow; by default where Grad-CAM is strongest, of a segmenter within the target. Of a
    detector, a pixel in the object to explain."""
    target: str | None = None
    """The class to explain; the predicted one by default."""
    object: int | None = None
    """Of a detector, which object to explain, by rank: 0 is the surest, with a target of that class."""
    stage: int | None = None
    """The stage whose map Grad-CAM weighs, from 0; negative counts from the end. By default the last, or of a detector
    with a feature pyramid that which has most of the evidence."""
    region: bool = False
    """Of a segmenter, explain all pixels of the target, not the point's alone."""
    size: str | None = None
    """Run at another size: a number of pixels, HxW, or native."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""


def explain_command(words: list[str]) -> int:
    """What a model looks at."""
    asked = parse(Explain, words, prog="swindow explain")
    explanation = explain(
        asked.run,
        asked.image,
        point=asked.point,
        target=asked.target,
        object=asked.object,
        stage=asked.stage,
        region=asked.region,
        size=asked.size,
        device=asked.device,
    )
    for path in explanation.save(asked.out):
        print(path)
    return 0
