"""Jobs over many images, for tests: models of each task, the same images in folders and shards, and rows read back."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from PIL import Image

from pictures import HUES, picture
from swindow.model import Model, build
from swindow.preprocess import Preprocess
from tiny_segmenters import segmenter, stirred

CLASSES = ("red", "grün", "<b>")


def model_of(task: str) -> Model:
    """A tiny model whose answers differ from image to image; the same at every call."""
    torch.manual_seed(5)
    shape = {"dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window": 4, "patch": 2}
    if task == "segment":
        model = stirred(segmenter("unet", num_classes=3))
    elif task == "detect":
        model = build(
            "detr_swin_micro",
            num_classes=3,
            transformer_width=8,
            transformer_heads=1,
            feed_forward=8,
            encoder_layers=1,
            decoder_layers=1,
            **shape,
        ).eval()
    else:
        model = build("swin_micro", num_classes=3, drop_path=0.0, **shape).eval()
        torch.nn.init.normal_(model.head.linear.weight, std=1.0)
    fit = {"segment": "squash", "detect": "native"}.get(task, "crop")
    side = {"detect": 32}.get(task, 16)
    model.preprocess = Preprocess(size=(side, side), mean=(0.5,) * 3, std=(0.2,) * 3, fit=fit)
    model.classes = CLASSES
    return model


def images(count: int) -> dict[str, bytes]:
    """Encoded images by name; the fourth is none."""
    found = {}
    for index in range(count):
        content = io.BytesIO()
        hue = [*HUES.values()][index % 3]
        picture(hue, index, (20, 20 + index % 5)).save(content, "PNG")
        found[f"{'ab'[index % 2]}/{index}.png"] = b"no image" if index == 3 else content.getvalue()
    return found


def write_folder(folder: Path, found: dict[str, bytes]) -> Path:
    """As files."""
    for name, content in found.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tar_of(found: dict[str, bytes]) -> bytes:
    """As a tar, with a label beside each."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in found.items():
            for member, body in ((name, data), (name.replace(".png", ".cls"), b"1")):
                facts = tarfile.TarInfo(member)
                facts.size = len(body)
                tar.addfile(facts, io.BytesIO(body))
    return content.getvalue()


def parquet_of(found: dict[str, bytes], *, group: int = 4) -> bytes:
    """As a Parquet file in row groups, as Hugging Face writes images."""
    rows = [{"image": {"bytes": data, "path": name}, "label": 0} for name, data in found.items()]
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), content, row_group_size=group)
    return content.getvalue()


def rows_of(out: Path) -> list[dict[str, Any]]:
    """All rows in the order of the parts."""
    found: list[dict[str, Any]] = []
    for path in sorted((out / "parts").glob("part-*")):
        if path.suffix == ".parquet":
            found += pyarrow.parquet.read_table(path).to_pylist()
        elif path.suffix == ".jsonl":
            found += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return found


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a job, by name."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def identities(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of the files of all parts that are done."""
    done = [path.stem for path in (out / "done").glob("*.json")]
    files = [path for path in out.glob("*/*") if path.stem in done]
    return {str(path.relative_to(out)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def mask_in(out: Path, part: str, name: str) -> Image.Image:
    """A mask from the tar beside a part."""
    with tarfile.open(out / "masks" / f"{part}.tar") as tar:
        member = tar.extractfile(name)
        assert member is not None
        return Image.open(io.BytesIO(member.read()))
