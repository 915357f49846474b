"""What is known of a file beside its tensors, strongest first, and what had to be assumed."""

import dataclasses
import re
from typing import Any

Fields = dict[str, Any]


@dataclasses.dataclass
class Evidence:
    """All that is known of a file, strongest first: what the caller said, its config, its own name."""

    said: Fields
    """Fields given by the caller."""
    known: Fields
    """Fields that a config beside the weights or inside them gives."""
    stem: str
    """The file's name."""
    assumed: list[str] = dataclasses.field(default_factory=list)
    """What was taken for granted, a sentence each."""

    def field(self, name: str, default: Any, why: str) -> Any:
        """What is known of a field that tensors do not tell; or `default`, noted as assumed with the reason."""
        for source in (self.said, self.known):
            if source.get(name) is not None:
                return source[name]
        named = in_name(self.stem).get(name)
        if named is not None:
            self.assumed.append(f"{name} {_text(named)} (from the file's name)")
            return named
        self.assumed.append(f"{name} {_text(default)} ({why}; give {name}=… if it is another)")
        return default


def in_name(stem: str) -> Fields:
    """What published files say in their names: ``swinv2_base_patch4_window12to16_192to256_22kto1k_ft``."""
    found: Fields = {}
    window = re.search(r"window(\d+)(?:to(\d+))?", stem)
    if window:
        found["window"] = int(window[2] or window[1])
        if window[2]:
            old = int(window[1])
            found["pretrained_window"] = (old, old, old, old // 2)
    size = re.search(r"_(?:(\d{3})to)?(\d{3})(?:_|\.|$)", stem)
    if size:
        found["image_size"] = int(size[2])
    return found


def _text(value: Any) -> str:
    return "×".join(map(str, value)) if isinstance(value, tuple) and len(value) == 2 else str(value)
