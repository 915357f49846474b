"""``swindow train``."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from swindow.cli.arguments import Positional, parse
from swindow.cli.launching import is_launched, launch, processes_for
from swindow.config import from_dict, merge, read_toml
from swindow.data.annotations import ObjectConfig
from swindow.data.masks import MaskConfig
from swindow.distributed import standing
from swindow.model import composition
from swindow.recipes import configure
from swindow.settings import TrainConfig, default_out
from swindow.training import train


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(TrainConfig):
    """Train or fine-tune a classifier, a segmenter where images have masks, or a detector where objects have boxes.

    With --task pretrain, a backbone learns from any folder of images without labels; --weights RUN then starts from it.

    The data picks a recipe, --config FILE changes it, flags have the last word.

    The defaults below are those before a recipe is picked; config.toml in the run folder has what was used.
    """

    data: Annotated[str, Positional] = ""
    """Class folders, an IDX folder, a CSV or Parquet table, a torchvision dataset's name, or digits; images/ and masks/
    with the same names, volumes, or ADE20K's, Cityscapes' or VOC's layout; a COCO JSON, a folder with one a split, or
    Pascal VOC's or YOLO's folders of boxes."""
    config: Path | None = None
    """A TOML file with any of these settings; a run folder's config.toml runs it again."""
    resume: bool = False
    """Go on with the run in --out."""
    devices: int | Literal["auto"] = 1
    """Processes that train together on this machine, one for each GPU (auto: every GPU), or on the CPU."""
    restarts: int = 3
    """How often they start again, from the last saved state, when one of them dies."""


def train_command(words: list[str]) -> int:
    """Train or fine-tune a classifier, segmenter or detector."""
    first = parse(Train, words, prog="swindow train")
    start = _starting_point(first, words)
    # Parsed again with what recipe and file propose as defaults, so that flags have the last word. Fields start empty,
    # since a table that has entries would take only those, and are laid over the proposed ones.
    blank = type(first)(**_values(dataclasses.replace(start, fields={})), config=first.config)
    final = parse(Train, words, prog="swindow train", default=blank)
    if final.task == "pretrain" and start.model == f"simmim_{final.model}":  # as the recipes understand it
        final = dataclasses.replace(final, model=start.model)
    fields = {**start.fields, **_tuples(final.fields, final.model)}
    config = dataclasses.replace(_as_config(final), fields=fields)
    if final.devices != 1 and not is_launched() and (count := processes_for(final.devices, config.device)) > 1:
        out = config.out or default_out(config, resume=final.resume)  # the same after a restart
        return launch(["train", *words, *(() if config.out else ("--out", out))], count, final.restarts)
    result = train(config, resume=final.resume)
    codes = {"SIGINT": 130, "SIGTERM": 143}
    if result.stopped_by not in codes and standing().is_first:
        evaluation = result.evaluation
        print(f"{result.run}: {evaluation.score_name} {evaluation.score:.2%}" if evaluation else result.run)
    return codes.get(result.stopped_by, 0)


def _tuples(fields: dict[str, Any], model: str) -> dict[str, Any]:
    """Flags' values for the fields of a model: a single one for a field that takes several is one of them."""
    plural = {name for part in composition(model) for name in _plural(part)}
    return {
        name: (value,) if name in plural and not isinstance(value, (tuple, list)) else value
        for name, value in fields.items()
    }


def _plural(config: Any, prefix: str = "") -> Iterator[str]:
    """Names of the fields that take several values, also within fields, as in ``regions.scales``."""
    for field in dataclasses.fields(config):
        if get_origin(field.type) is tuple:
            yield prefix + field.name
        elif dataclasses.is_dataclass(inner := getattr(config, field.name)):
            yield from _plural(inner, f"{prefix}{field.name}.")


def _values(config: TrainConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _as_config(asked: Any) -> TrainConfig:
    return TrainConfig(**{field.name: getattr(asked, field.name) for field in dataclasses.fields(TrainConfig)})


def _starting_point(first: Any, words: list[str]) -> TrainConfig:
    """The settings that flags then change: the run's own on resume, else the recipe's; the file's on top of either."""
    given = read_toml(first.config) if first.config else {}
    merge(TrainConfig(), given)  # names and types, before anything is derived from them
    own = Path(first.out or str(given.get("out", ""))) / "config.toml"
    if first.resume and (first.out or given.get("out")) and own.exists():
        return merge(from_dict(TrainConfig, read_toml(own)), given)
    flags = _explicit(words, first)
    tables = {name: {**given.get(name, {}), **flags.pop(name, {})} for name in _FOLLOWED_TABLES}
    given |= flags | {name: table for name, table in tables.items() if table}
    return configure(**{**given, "data": first.data or given.get("data", "")})


def _explicit(words: list[str], first: Train) -> dict[str, Any]:
    """The flags that a recipe must know of, since other settings follow from them.

    What is the same when the words are parsed with other defaults was not a default, but given.
    """
    changed: dict[str, Any] = {name: getattr(_OTHER, name) for name in (*_FOLLOWED, *_FOLLOWED_TABLES)}
    other = parse(Train, words, prog="swindow train", default=dataclasses.replace(Train(), **changed))
    tables = {name: _same_entries(getattr(first, name), getattr(other, name)) for name in _FOLLOWED_TABLES}
    return _same(first, other, _FOLLOWED) | {name: table for name, table in tables.items() if table}


def _same(one: Any, other: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(one, name) for name in names if getattr(one, name) == getattr(other, name)}


def _same_entries(one: Any, other: Any) -> dict[str, Any]:
    return _same(one, other, [field.name for field in dataclasses.fields(one)])


_FOLLOWED = (
    "task",
    "recipe",
    "model",
    "size",
    "channels",
    "weights",
    "teacher",
    "batch",
    "seed",
    "val_fraction",
    "max_pixels",
)
_FOLLOWED_TABLES = ("masks", "objects")
_OTHER = TrainConfig(
    task="segment",
    recipe="other",
    model="other",
    size=1,
    channels=2,
    weights="other",
    teacher="other",
    batch=1,
    seed=1,
    val_fraction=0.2,
    max_pixels=1,
    masks=MaskConfig(ignore_index=0, reduce_zero_label=False, case="other", intensity=(0.0, 1.0), axis=1),
    objects=ObjectConfig(outside="stop", empty="stop", malformed="drop", difficult="keep"),
)
"""Values that differ from every default."""
