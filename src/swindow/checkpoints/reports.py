"""What became of a file's tensors, in a form to read."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What was loaded from where, what was made to fit, and what was taken for granted."""

    path: Path
    format: str
    """Whose layout the file has."""
    model: str
    """The variant that it was loaded into."""
    loaded: int = 0
    """Tensors taken as they are."""
    resized: tuple[str, ...] = ()
    """Tensors made for another size, with both shapes."""
    reset: tuple[str, ...] = ()
    """Parameters that start anew because it was asked for, or because no file of this kind has them."""
    mirrored: tuple[str, ...] = ()
    """A decoder's parameters that are those of the encoder on the same size, with whose they are."""
    dropped: tuple[str, ...] = ()
    """Tensors of the file that the model has no use for: buffers that it computes, other parts."""
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    """Tensors that no rule makes fit, with both shapes and what to do."""
    assumed: tuple[str, ...] = ()
    """What the file does not tell and was taken for granted."""
    notes: tuple[str, ...] = ()
    """What the container's reader decided."""

    @property
    def problems(self) -> list[str]:
        """Why the weights do not fit; empty when they do."""
        missing = [f"missing {name}" for name in self.missing]
        return [*missing, *(f"unexpected {name}" for name in self.unexpected), *self.misshapen]

    def __str__(self) -> str:
        lines = [f"{self.path.name}: {self.format} format, {self.model}, {self.loaded} tensors loaded"]
        for title in (
            "resized",
            "mirrored",
            "reset",
            "dropped",
            "missing",
            "unexpected",
            "misshapen",
            "assumed",
            "notes",
        ):
            items = getattr(self, title)
            if items:
                lines.append(f"  {title}: {shortened(items)}")
        return "\n".join(lines)


def shortened(items: list[str] | tuple[str, ...], most: int = 6) -> str:
    """The first of several things, and how many more there are."""
    rest = len(items) - most
    return "; ".join(items[:most]) + (f"; and {rest} more" if rest > 0 else "")
