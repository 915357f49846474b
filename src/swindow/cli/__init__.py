"""The command line. A command's module is imported when it is called, so ``--help`` imports nothing heavy."""

import importlib
import os
import sys
import warnings
from typing import Any

from swindow._version import __version__
from swindow.errors import SwindowError, UnknownName

HELP = """\
usage: swindow COMMAND [OPTIONS]

Swin Transformers on your own images.

  train DATA           train or fine-tune a classifier, segmenter or detector, or pretrain one without labels
  eval RUN [DATA]      judge a trained model
  predict RUN IMAGES   classes of new images, masks, or objects: JSON lines, CSV, COCO results, overlays, a sheet
  explain RUN IMAGE    what the model looks at: attention maps, Grad-CAM, for an image, a pixel or an object
  info NAME|RUN        parameters, multiply-accumulates, stage table
  models [PATTERN]     the models there are
  data check DATA      find images, labels, masks and boxes that cannot be used
  data pack DATA OUT   images and labels into tar or Parquet shards, on disk or object storage
  bench MODEL          time and memory, beside other libraries and the bare matrix products
  convert IN OUT --to FORMAT   weights in somebody else's format: timm, torchvision, huggingface, …

swindow COMMAND --help says more. --version prints the version; --debug shows the traceback of an error.
DATA is a folder of class folders (with or without train/ and val/), a folder of IDX files (MNIST's format),
a CSV or Parquet table of path and label, a torchvision dataset's name, or digits. To segment, it is a folder of
images/ and masks/ with the same names, of volumes (.npz, .npy, .nii.gz), or laid out as ADE20K, Cityscapes, VOC.
To find objects, it is a COCO JSON, a folder with one for each split, or Pascal VOC's or YOLO's folders.
Labelled images may also lie in tar or Parquet shards, in a folder or behind a URL such as s3://bucket/prefix."""

COMMANDS = {
    "train": "train",
    "eval": "eval",
    "predict": "predict",
    "explain": "explain",
    "info": "models",
    "models": "models",
    "data": "data",
    "bench": "bench",
    "convert": "models",
}
"""Which module of this package has a command, as a function called ``NAME_command``."""


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 done with failures, 2 refused, 130 and 143 stopped by a signal."""
    settle()
    code, message = concluded(list(sys.argv[1:] if arguments is None else arguments))
    if message:
        print(f"swindow: {message}", file=sys.stderr)
    sys.exit(code)


def settle() -> None:
    """What is the program's to say, not the library's: how threads wait, and what a warning looks like."""
    # Threads that spin while they wait starve each other on a shared machine: training was up to ten times slower
    # (docs/log.md). Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    warnings.showwarning = _say_warning  # type: ignore[assignment]


def concluded(words: list[str]) -> tuple[int, str]:
    """The exit code of a command, once it is run, and the one line to say about what stopped it, if anything did."""
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = run(words)
        sys.stdout.flush()
    except SwindowError as error:
        if debug:
            raise
        return 2, str(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read us has left: no more to say
        return 141, ""
    except OSError as error:
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        return 1, f"{place}{error.strerror or error}; nothing that was there before is lost"
    except KeyboardInterrupt:
        return 130, ""
    return code, ""


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
    module = importlib.import_module(f"swindow.cli.{COMMANDS[words[0]]}")
    return getattr(module, f"{words[0]}_command")(words[1:])


def _say_warning(message: Any, category: type[Warning], *place: Any) -> None:
    """A warning is a line for the user, not a place in our code."""
    print(f"swindow: {message}", file=sys.stderr)
