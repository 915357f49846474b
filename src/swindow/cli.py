"""The command line. Every command is one function that imports what it needs; ``--help`` imports nothing heavy."""

import argparse
import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from swindow._version import __version__
from swindow.errors import ConfigError, SwindowError, UnknownName

if TYPE_CHECKING:
    from swindow.model import Model
    from swindow.settings import TrainConfig

HELP = """\
usage: swindow COMMAND [OPTIONS]

Swin Transformers on your own images.

  train DATA           train or fine-tune, with a report at the end
  eval RUN [DATA]      judge a trained model
  predict RUN IMAGES   classes of new images: JSON lines, CSV, a contact sheet
  explain RUN IMAGE    what the model looks at: attention maps, Grad-CAM
  info NAME|RUN        parameters, multiply-accumulates, stage table
  models [PATTERN]     the models there are
  data check DATA      find images and labels that cannot be used
  bench MODEL          time and memory, beside other libraries and the bare matrix products
  convert IN OUT --to FORMAT   weights in somebody else's format: timm, torchvision, huggingface, …

swindow COMMAND --help says more. --version prints the version; --debug shows the traceback of an error.
DATA is a folder of class folders (with or without train/ and val/), a folder of IDX files (MNIST's format),
a CSV or Parquet table of path and label, a torchvision dataset's name, or digits."""

Arguments = TypeVar("Arguments")
USUAL = 224  # pixels: what models are counted at when nobody says


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 done with failures, 2 refused, 130 and 143 stopped by a signal."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Threads that spin while they wait starve each other on a shared machine: training was up to ten times slower
    # (docs/log.md). Read when torch is loaded, so it is the program's to say, not the library's.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    warnings.showwarning = _say_warning  # type: ignore[assignment]
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = run(words)
        sys.stdout.flush()
    except SwindowError as error:
        if debug:
            raise
        print(f"swindow: {error}", file=sys.stderr)
        code = 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read us has left: no more to say
        code = 141
    except OSError as error:
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(f"swindow: {place}{error.strerror or error}; nothing that was there before is lost", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def run(words: list[str]) -> int:
    """The command that `words` name, run; its exit code.

    Raises:
        UnknownName: there is no such command.
    """
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if words[0] in ("-V", "--version"):
        print(f"swindow {__version__}")
        return 0
    if words[0] not in COMMANDS:
        raise UnknownName("command", words[0], COMMANDS)
    return COMMANDS[words[0]](words[1:])


def train_command(words: list[str]) -> int:
    """Train or fine-tune a classifier on a folder of images."""
    from swindow.training import train

    first = parse(_train_arguments(), words, prog="swindow train")
    start = _starting_point(first, words)
    # Parsed again with what recipe and file propose as defaults, so that flags have the last word. Fields start empty,
    # since a table that has entries would take only those, and are laid over the proposed ones.
    blank = type(first)(**_values(dataclasses.replace(start, fields={})), config=first.config)
    final = parse(_train_arguments(), words, prog="swindow train", default=blank)
    config = dataclasses.replace(_as_config(final), fields={**start.fields, **final.fields})
    result = train(config, resume=final.resume)
    codes = {"SIGINT": 130, "SIGTERM": 143}
    if result.stopped_by not in codes:
        print(f"{result.run}: accuracy {result.evaluation.accuracy:.2%}" if result.evaluation else result.run)
    return codes.get(result.stopped_by, 0)


def eval_command(words: list[str]) -> int:
    """Judge a trained model on a split of a data set."""
    import tyro

    from swindow.evaluation import evaluate
    from swindow.images import ImageLimits
    from swindow.progress import watcher

    @dataclasses.dataclass(frozen=True)
    class Eval:
        """Judge a trained model on a split of a data set."""

        run: Annotated[str, tyro.conf.Positional]
        """A run folder or a checkpoint."""
        data: Annotated[str, tyro.conf.Positional] = ""
        """Any DATA that train takes; empty for the data that the run was trained on."""
        split: str = ""
        """train, val or test; empty for test where there is one, else val."""
        batch: int = 64
        """Images per forward pass."""
        device: str = "auto"
        """auto, cpu, cuda or mps."""
        out: Path | None = None
        """Also write the figures to this JSON file."""
        max_pixels: int = 200_000_000
        """Larger images are refused before they are decoded."""

    asked = parse(Eval, words, prog="swindow eval")
    evaluation = evaluate(
        asked.run,
        asked.data or None,
        split=asked.split or None,
        batch=asked.batch,
        device=asked.device,
        workers=-1,
        limits=ImageLimits(max_pixels=asked.max_pixels),
        progress=watcher(),
    )
    print(evaluation.table())
    if asked.out is not None:
        from swindow.checkpoints.files import write_atomic

        write_atomic(asked.out, json.dumps(evaluation.summary(), indent=1))
    return 0


def predict_command(words: list[str]) -> int:
    """Classes of new images."""
    import tyro

    from swindow.images import ImageLimits
    from swindow.predict import Predictor, predict_files
    from swindow.progress import watcher

    @dataclasses.dataclass(frozen=True)
    class Predict:
        """Classify new images: one line each on screen, predictions.jsonl, predictions.csv and sheet.png in --out."""

        run: Annotated[str, tyro.conf.Positional]
        """A run folder or a checkpoint."""
        images: Annotated[tuple[str, ...], tyro.conf.Positional]
        """Files, folders or glob patterns."""
        out: Path = Path("predictions")
        """Folder for the results."""
        top: int = 5
        """Classes to name for each image."""
        batch: int = 32
        """Images per forward pass."""
        sheet: bool = True
        """Make a contact sheet."""
        device: str = "auto"
        """auto, cpu, cuda or mps."""
        max_pixels: int = 200_000_000
        """Larger images are refused before they are decoded."""

    asked = parse(Predict, words, prog="swindow predict")
    predictor = Predictor(
        asked.run, device=asked.device, batch=asked.batch, limits=ImageLimits(max_pixels=asked.max_pixels)
    )
    summary = predict_files(
        predictor, list(asked.images), asked.out, top=asked.top, sheet=asked.sheet, progress=watcher()
    )
    print(summary.text())
    return 1 if summary.failures else 0


def explain_command(words: list[str]) -> int:
    """What a model looks at."""
    import tyro

    from swindow.explanation import explain

    @dataclasses.dataclass(frozen=True)
    class Explain:
        """Show what a model looks at in an image: stitched window attention, a point's view, Grad-CAM."""

        run: Annotated[str, tyro.conf.Positional]
        """A run folder or a checkpoint."""
        image: Annotated[str, tyro.conf.Positional]
        """The image."""
        out: Path = Path("explanation")
        """Folder for the pictures and index.html."""
        point: tuple[int, int] | None = None
        """x and y of the pixel to follow; by default where Grad-CAM is strongest."""
        target: str | None = None
        """The class to explain; the predicted one by default."""
        stage: int = -1
        """The stage whose map Grad-CAM weighs, from 0; negative counts from the end."""
        size: str | None = None
        """Run at another size: a number of pixels, HxW, or native."""
        device: str = "auto"
        """auto, cpu, cuda or mps."""

    asked = parse(Explain, words, prog="swindow explain")
    explanation = explain(
        asked.run,
        asked.image,
        point=asked.point,
        target=asked.target,
        stage=asked.stage,
        size=asked.size,
        device=asked.device,
    )
    for path in explanation.save(asked.out):
        print(path)
    return 0


def info_command(words: list[str]) -> int:
    """Parameters, multiply-accumulates and stages of a model."""
    import tyro

    from swindow.counting import count, stage_table

    @dataclasses.dataclass(frozen=True)
    class Info:
        """Parameters, multiply-accumulates, activations and the stage table of a model."""

        name: Annotated[str, tyro.conf.Positional]
        """A model's name, a run folder, anyone's weights or a published name."""
        size: tuple[int, ...] = ()
        """Height and width, or one number for a square; the run's own, or 224, by default."""
        classes: int = 1000
        """Number of classes, for a model by name."""
        channels: int = 3
        """Image channels, for a model by name."""

    asked = parse(Info, words, prog="swindow info")
    model = _model_to_count(asked.name, asked.classes, asked.channels)
    counts = count(model, _size_to_count(asked.size, model))
    height, width = counts.size
    print(
        f"{asked.name}: {counts.parameters:,} parameters; for one {height}x{width} image "
        f"{counts.macs / 1e9:.3f} G multiply-accumulates (as its paper counts; "
        f"{counts.product_macs / 1e9:.3f} as torchvision does, products alone) "
        f"and {counts.activations / 1e6:.2f} M activations\n"
    )
    print(stage_table(counts))
    return 0


def models_command(words: list[str]) -> int:
    """The models that there are."""
    import tyro

    from swindow.counting import count
    from swindow.model import models

    @dataclasses.dataclass(frozen=True)
    class Models:
        """The models that match a shell pattern, with their size."""

        pattern: Annotated[str, tyro.conf.Positional] = "*"
        """Such as swin_*."""

    pattern = parse(Models, words, prog="swindow models").pattern
    names = models(pattern)
    if not names:
        raise UnknownName("model", pattern, models())
    for name in names:
        model = _model_to_count(name, 1000, 3)
        size = _made_for(model)
        counts = count(model, size)
        print(f"{name:24} {counts.parameters / 1e6:6.1f} M parameters  {counts.macs / 1e9:7.2f} G MACs at {size[0]} px")
    return 0


def data_command(words: list[str]) -> int:
    """What can be done with a data set."""
    import tyro

    from swindow.data import check
    from swindow.images import ImageLimits
    from swindow.progress import watcher

    @dataclasses.dataclass(frozen=True)
    class Check:
        """Decode every image of a data set and list everything that cannot be used, each with what to do."""

        action: Annotated[Literal["check"], tyro.conf.Positional]
        """check is what there is."""
        data: Annotated[str, tyro.conf.Positional]
        """Any DATA that train takes."""
        max_pixels: int = 200_000_000
        """Larger images are refused before they are decoded."""

    asked = parse(Check, words, prog="swindow data")
    report = check(asked.data, limits=ImageLimits(max_pixels=asked.max_pixels), progress=watcher())
    print(report.text())
    return 1 if report.problems else 0


def bench_command(words: list[str]) -> int:
    """Time and memory of models, ours and others."""
    import tyro

    @dataclasses.dataclass(frozen=True)
    class BenchArguments:
        """Time and peak memory of inference and of training steps, beside other libraries and the bare products.

        Runs alternate between the contenders. After a name, colons say how it runs: amp, checkpoint (activations),
        optimize, compile, reduce-overhead, max-autotune. docs/performance.md says how to read the tables.
        """

        models: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
        """Models by name, run folders or published names: swin_tiny, swin_tiny:compile."""
        suite: Literal["none", "cpu"] = "none"
        """cpu: every claim of this project about a CPU, with a verdict, instead of models of your choice."""
        minutes: float = 15.0
        """What a suite should take; it leaves out compiled peers rather than take longer."""
        against: str = ""
        """Peers, with commas between: timm, timm:compile, torchvision, transformers, onnxruntime, openvino,
        FILE.py:callable."""
        size: tuple[int, ...] = ()
        """Height and width, or one number for a square; by default what the model is made for."""
        batch: int | None = None
        """Images at a time: 8 by default; in a sweep of the largest images, and 1."""
        dtype: str = "fp32"
        """fp32, bf16, fp16 or auto."""
        mode: Literal["infer", "train", "both"] = "both"
        """Inference, training steps, or both."""
        sweep: Literal["none", "size"] = "none"
        """size: also at 2, 4 and 8 times the size, with as many pixels in all."""
        rounds: int | None = None
        """Rounds that count: 15 by default, 7 in a suite."""
        threads: int = 0
        """Threads of torch; 0 for its own choice."""
        device: str = "auto"
        """auto, cpu, cuda or mps."""
        memory: bool = True
        """Measure peak memory, each contender in a process of its own."""
        out: Path | None = None
        """A .json file, a folder for bench.json and a sweep's chart, or a .png file for the chart; for a suite a .json
        file or a folder for suite-cpu-DATE.json. Nothing is written without it."""

    asked = parse(BenchArguments, words, prog="swindow bench")
    return _run_bench(asked) if asked.suite == "none" else _run_suite(asked, BenchArguments())


def convert_command(words: list[str]) -> int:
    """Weights in somebody else's format."""
    import tyro

    from swindow.checkpoints import convert

    @dataclasses.dataclass(frozen=True)
    class Convert:
        """Write a model's weights in another format, so that its own library loads them strictly."""

        source: Annotated[str, tyro.conf.Positional]
        """A run folder, a checkpoint, anyone's weights file or folder, or a published name."""
        target: Annotated[Path, tyro.conf.Positional]
        """A .safetensors or .pth file, or a folder (what from_pretrained takes)."""
        to: str
        """swindow, timm, torchvision, huggingface, openmmlab, facebook, microsoft, microsoft_dense, …_simmim."""
        window: int | None = None
        """Side of the windows, where the source does not tell it."""
        image_size: int | None = None
        """Side of the images that the model is made for, where the source does not tell it."""
        prefer_ema: bool = False
        """Of a file that holds averaged weights beside the others, take those."""

    asked = parse(Convert, words, prog="swindow convert")
    fields = {name: getattr(asked, name) for name in ("window", "image_size") if getattr(asked, name) is not None}
    path = convert(asked.source, asked.target, to=asked.to, prefer_ema=asked.prefer_ema, say=print, **fields)
    print(path)
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train_command,
    "eval": eval_command,
    "predict": predict_command,
    "explain": explain_command,
    "info": info_command,
    "models": models_command,
    "data": data_command,
    "bench": bench_command,
    "convert": convert_command,
}


def _say_warning(message: Any, category: type[Warning], *place: Any) -> None:
    """A warning is a line for the user, not a place in our code."""
    print(f"swindow: {message}", file=sys.stderr)


def parse(shape: type[Arguments], words: list[str], *, prog: str, default: Arguments | None = None) -> Arguments:
    """`words` as an instance of the dataclass `shape`; tyro prints help and usage errors and exits by itself."""
    import tyro

    if default is None:
        return tyro.cli(shape, args=words, prog=prog)
    return tyro.cli(shape, args=words, prog=prog, default=default)


def _model_to_count(name: str, classes: int, channels: int) -> "Model":
    """A model by name, without memory for its weights, or the one in a file."""
    import torch

    from swindow.checkpoints import load
    from swindow.model import build, models

    if name not in models() and (Path(name).exists() or "." in name or "/" in name):  # a path or a published name
        return load(name)
    with torch.device("meta"):
        return build(name, num_classes=classes, in_channels=channels)


def _run_bench(asked: Any) -> int:
    from swindow.bench import Bench, Protocol, bench
    from swindow.bench.tables import roofline_line, sweep_table, sweeps, table, write
    from swindow.progress import Lines

    plan = Bench(
        models=asked.models,
        against=tuple(filter(None, asked.against.split(","))),
        size=_height_and_width(asked.size),
        batch=asked.batch,
        dtype=asked.dtype,
        mode=asked.mode,
        sweep=asked.sweep == "size",
        threads=asked.threads,
        device=asked.device,
        protocol=Protocol(memory=asked.memory, **({} if asked.rounds is None else {"rounds": asked.rounds})),
    )
    comparisons = bench(plan, say=Lines().say)
    console = _wide_console()
    for comparison in comparisons:
        console.print(table(comparison))
        console.print(roofline_line(comparison))
    for together in sweeps(comparisons) if plan.sweep else ():
        console.print(sweep_table(together))
    if asked.out is not None:
        setting = dataclasses.asdict(plan)
        for path in write(comparisons, asked.out, sweep=plan.sweep, setting=setting):
            print(path)
    return 0


def _run_suite(asked: Any, usual: Any) -> int:
    from swindow.bench.suite import Suite, suite
    from swindow.bench.tables import claims_table, table, write_dated
    from swindow.progress import watcher

    taken = ("suite", "minutes", "batch", "rounds", "threads", "out")
    others = [field.name for field in dataclasses.fields(asked) if field.name not in taken]
    refused = [name for name in others if getattr(asked, name) != getattr(usual, name)]
    if refused:
        raise ConfigError(f"a suite says by itself what it measures; it takes no {', '.join(refused)}")
    given = {name: getattr(asked, name) for name in ("batch", "rounds") if getattr(asked, name) is not None}
    plan = Suite(minutes=asked.minutes, threads=asked.threads, **given)
    results = suite(plan, progress=watcher())
    console = _wide_console()
    for comparison in results.comparisons:
        console.print(table(comparison))
        console.print()
    console.print(claims_table(results.claims))
    minutes, seconds = divmod(round(results.seconds), 60)
    print(f"{minutes} min {seconds} s")
    if asked.out is not None:
        print(write_dated({"setting": dataclasses.asdict(plan)} | results.record(), asked.out, "suite-cpu"))
    return 1 if any(claim.verdict == "falls short" for claim in results.claims) else 0


def _wide_console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)


def _height_and_width(asked: tuple[int, ...]) -> tuple[int, int] | None:
    """What --size says; None when it says nothing."""
    if len(asked) > 2 or any(side < 1 for side in asked):
        raise ConfigError(f"size {asked} is neither a side nor a height and a width in pixels")
    return (asked[0], asked[-1]) if asked else None


def _size_to_count(asked: tuple[int, ...], model: "Model") -> tuple[int, int]:
    size = _height_and_width(asked)
    if size is not None:
        return size
    if model.preprocess is not None:
        return model.preprocess.size
    return _made_for(model)


def _made_for(model: "Model") -> tuple[int, int]:
    """Height and width of the images that a variant is made for."""
    size = getattr(model.backbone.config, "image_size", USUAL)
    return (size, size) if isinstance(size, int) else size


def _train_arguments() -> Any:
    """TrainConfig with DATA as a positional argument and what only the command line knows."""
    import tyro

    from swindow.settings import TrainConfig

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Train(TrainConfig):
        """Train or fine-tune a classifier. The data picks a recipe, --config FILE changes it, flags have the last word.

        The defaults below are those before a recipe is picked; config.toml in the run folder has what was used.
        """

        data: Annotated[str, tyro.conf.Positional] = ""
        """Class folders, an IDX folder, a CSV or Parquet table, a torchvision dataset's name, or digits."""
        config: Path | None = None
        """A TOML file with any of these settings; a run folder's config.toml runs it again."""
        resume: bool = False
        """Go on with the run in --out."""

    return Train


def _values(config: "TrainConfig") -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _as_config(asked: Any) -> "TrainConfig":
    from swindow.settings import TrainConfig

    return TrainConfig(**{field.name: getattr(asked, field.name) for field in dataclasses.fields(TrainConfig)})


def _starting_point(first: Any, words: list[str]) -> "TrainConfig":
    """The settings that flags then change: the run's own on resume, else the recipe's; the file's on top of either."""
    from swindow.config import from_dict, merge, read_toml
    from swindow.recipes import configure
    from swindow.settings import TrainConfig

    given = read_toml(first.config) if first.config else {}
    merge(TrainConfig(), given)  # names and types, before anything is derived from them
    own = Path(first.out or str(given.get("out", ""))) / "config.toml"
    if first.resume and (first.out or given.get("out")) and own.exists():
        return merge(from_dict(TrainConfig, read_toml(own)), given)
    given |= _explicit(words)
    return configure(**{**given, "data": first.data or given.get("data", "")})


def _explicit(words: list[str]) -> dict[str, Any]:
    """The flags that a recipe must know of, since other settings follow from them."""
    scout = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag, kind in {"--recipe": str, "--model": str, "--size": int, "--channels": int, "--weights": str}.items():
        scout.add_argument(flag, type=kind)
    for flag, kind in {"--seed": int, "--val-fraction": float, "--max-pixels": int}.items():
        scout.add_argument(flag, type=kind)
    known = vars(scout.parse_known_args(words)[0])
    return {name: value for name, value in known.items() if value not in (None, "None")}
