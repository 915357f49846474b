"""Published weights by name: the table against its sources, and files fetched from a hub that the test plays."""

import dataclasses
import hashlib
import os
import re
import subprocess
import sys
import urllib.error
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file

from swindow import classes
from swindow.backbones import VARIANTS
from swindow.checkpoints import load
from swindow.checkpoints.converting import save_as
from swindow.checkpoints.detector_facts import usual_for_objects
from swindow.checkpoints.hub import NAMED, NamedWeights, resolve
from swindow.errors import CheckpointError, MissingExtra, UnknownName
from swindow.model import MODELS, build
from swindow.ops.windows import relative_position_index
from swindow.preprocess import Preprocess
from vit_peers import assert_close, scramble

NAME = "swin_tiny.ms_in1k"
SOURCE = "timm/swin_tiny_patch4_window7_224.ms_in1k"
OF_TIMM = [name for name, entry in NAMED.items() if entry.format == "timm"]
DETECTORS = [name for name in NAMED if "coco" in name]
OF_TORCHVISION = [n for n, entry in NAMED.items() if entry.format == "torchvision" and n not in DETECTORS]
OF_OPENMMLAB = [n for n, entry in NAMED.items() if entry.format == "huggingface" and n not in DETECTORS]
VIT = r"vit_(tiny|small|base|large|huge)_(patch\d+|r\d+_s\d+)_(224|384)\.(augreg2?|orig|sam)_.*"
OURS_IN_TIMM = rf"swin_.*|swinv2_(?!cr_).*|deit_.*|{VIT}"


def timm_cfg(entry: NamedWeights) -> Any:
    import timm

    return timm.get_pretrained_cfg(entry.source.removeprefix("timm/"))


@pytest.mark.parametrize("name", OF_TIMM)
def test_entry_says_what_timm_says(name: str) -> None:
    entry, cfg = NAMED[name], timm_cfg(NAMED[name])
    assert cfg is not None
    assert (entry.source, entry.licence) == (cfg.hf_hub_id, cfg.license)
    assert cfg.hf_hub_filename is None
    assert entry.file == "model.safetensors"
    assert entry.preprocess == Preprocess(
        size=cfg.input_size[1:],
        mean=cfg.mean,
        std=cfg.std,
        crop_ratio=cfg.crop_pct,
        interpolation=cfg.interpolation,
        fit={"center": "crop", "squash": "squash"}[cfg.crop_mode],
    )
    assert len(entry.class_names or ()) == cfg.num_classes


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_entry_says_what_torchvision_says(name: str) -> None:
    from torchvision.models import get_weight

    entry, theirs = NAMED[name], get_weight(NAMED[name].source)
    pixels, about = theirs.transforms(), theirs.meta
    (side,), (whole,) = pixels.crop_size, pixels.resize_size
    assert entry.file == theirs.url.rsplit("/", 1)[1]
    assert entry.preprocess == Preprocess(
        size=(side, side),
        mean=tuple(pixels.mean),
        std=tuple(pixels.std),
        crop_ratio=side / whole,
        interpolation=pixels.interpolation.value,
    )
    assert entry.accuracy == tuple(about["_metrics"]["ImageNet-1K"][key] for key in ("acc@1", "acc@5"))
    assert list(entry.class_names or ()) == about["categories"]


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_s_entry_says_what_torchvision_or_its_repository_says(name: str) -> None:
    from torchvision.models import get_weight

    entry = NAMED[name]
    assert entry.preprocess == usual_for_objects(3)
    assert (entry.name, entry.accuracy) == (name, None)
    if entry.format == "huggingface":
        assert entry.source == f"facebook/{entry.variant.replace('_', '-').replace('resnet', 'resnet-')}"
        assert (entry.file, entry.licence, entry.sha256) == ("model.safetensors", "apache-2.0", None)
        assert entry.class_names == classes.coco_by_id()
        return
    theirs = get_weight(entry.source)
    assert entry.file == theirs.url.rsplit("/", 1)[1]
    assert entry.file.endswith(f"-{entry.sha256}.pth")
    background = ["N/A"] if "retinanet" in name else []
    assert list(entry.class_names or ()) == background + theirs.meta["categories"][1:]


def test_all_of_torchvision_s_detectors_that_can_be_read_are_there() -> None:
    from torchvision.models import detection, get_model_weights, list_models

    published = {str(weights) for name in list_models(detection) for weights in get_model_weights(name)}
    ours = {NAMED[name].source for name in DETECTORS if NAMED[name].format == "torchvision"}
    unread = {name for name in published if "ResNet50" not in name or name.startswith(("FCOS", "Keypoint"))}
    unread |= {f"{kind}RCNN_ResNet50_FPN_V2_Weights.COCO_V1" for kind in ("Faster", "Mask")}
    assert published - unread == ours


def test_all_of_timms_swins_vits_deits_and_hybrids_are_there() -> None:
    import timm

    published = {name for name in timm.list_pretrained() if re.fullmatch(OURS_IN_TIMM, name)}
    assert published == {NAMED[name].source.removeprefix("timm/") for name in OF_TIMM}


@pytest.mark.parametrize("name", sorted({*NAMED} - {*OF_OPENMMLAB, *DETECTORS}))
def test_entry_names_a_model_that_can_be_built(name: str) -> None:
    entry = NAMED[name]
    assert entry.name == name
    assert name.startswith(f"{entry.variant}.") or entry.fields["patch"] != VARIANTS[entry.variant].patch
    variant = VARIANTS[entry.variant]
    config: Any = dataclasses.replace(variant, **entry.fields)
    assert entry.preprocess.size == (config.image_size, config.image_size)
    known = {"patch"} if "patch" in entry.fields else set()
    assert {
        field for field in entry.fields if getattr(config, field) != getattr(VARIANTS[entry.variant], field)
    } == known
    assert (entry.accuracy is not None) == (entry.classes == "imagenet1k")
    assert entry.accuracy is None or 70 < entry.accuracy[0] < entry.accuracy[1] < 100


@pytest.mark.parametrize("name", [name for name in OF_TIMM if NAMED[name].fields.get("window", 0) != 0])
def test_windows_are_those_in_timms_names(name: str) -> None:
    entry = NAMED[name]
    found = re.search(r"window(\d+)(?:to(\d+))?", entry.source)
    if found is None:
        assert "_s3_" in name
        return
    assert entry.fields["window"] == int(found[2] or found[1])
    old = int(found[1])
    if found[2]:
        assert entry.fields["pretrained_window"] == (old, old, old, old // 2)


@pytest.mark.parametrize(
    "name",
    [
        "swin_s3_tiny.ms_in1k",
        "swin_v2_tiny_w16.ms_in1k",
        "vit_tiny.augreg_in21k",
        "vit_small_32.augreg_in21k",
        "deit_tiny_distilled.fb_in1k",
        "hybrid_small_r26_32_384.augreg_in21k_ft_in1k",
    ],
)
def test_fields_are_all_that_a_file_does_not_tell(name: str, tmp_path: Path) -> None:
    import timm

    entry, said = NAMED[name], []
    theirs = timm.create_model(entry.source.removeprefix("timm/"))
    save_file(theirs.state_dict(), tmp_path / entry.file)
    model = load(tmp_path / entry.file, say=said.append, **entry.fields)
    assert model.config.backbone == dataclasses.replace(VARIANTS[entry.variant], **entry.fields)
    assert model.config.head.num_classes == len(entry.class_names or ())
    assert re.findall(r"assumed: (.*)", said[0]) == ["ImageNet's mean and deviation, bicubic resizing"]


def test_class_names_are_in_the_heads_order() -> None:
    assert NAMED["swin_tiny.ms_in22k"].class_names == classes.imagenet22k()
    assert NAMED["vit_tiny.augreg_in21k"].class_names == classes.imagenet21k()
    assert NAMED["vit_base.orig_in21k"].class_names is None


class Hub:
    """A folder as the hub's client leaves it: a blob under its SHA-256, and a link to it."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.repository = cache / f"models--{SOURCE.replace('/', '--')}"
        self.commit = "0" * 40

    def put(self, content: bytes, *, told: str | None = None) -> Path:
        blob = self.repository / "blobs" / (told or hashlib.sha256(content).hexdigest())
        link = self.repository / "snapshots" / self.commit / "model.safetensors"
        for path in (blob, link, self.repository / "refs" / "main"):
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(blob)
        (self.repository / "refs" / "main").write_text(self.commit)
        return link


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A cache, with the client's offline mode on."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return Hub(tmp_path / "cache")


def test_a_file_in_the_cache_is_found_without_a_network(hub: Hub) -> None:
    path = hub.put(b"weights")
    assert resolve(NAME, cache_dir=hub.cache) == (path, NAMED[NAME])


def test_offline_without_the_file_says_what_to_do(hub: Hub) -> None:
    with pytest.raises(CheckpointError) as caught:
        resolve(NAME, cache_dir=hub.cache)
    assert str(caught.value) == (
        f"{NAME}: model.safetensors of {SOURCE} is not in the cache and cannot be downloaded (offline mode is on); "
        f"download it on another machine, then use swindow.load(path) or copy that machine's cache into {hub.cache}"
    )
    assert not list(hub.cache.rglob("*.safetensors"))


def test_a_fresh_process_finds_all_of_the_client_that_it_needs(tmp_path: Path) -> None:
    """Here transformers and this module have imported parts of it that a user's process has not."""
    lines = f"""
from swindow.checkpoints.hub import resolve
from swindow.errors import CheckpointError
try:
    resolve({NAME!r}, cache_dir={str(tmp_path)!r})
except CheckpointError as error:
    print(error)
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", lines], env=environment, capture_output=True, text=True, check=True)
    assert "offline mode is on" in done.stdout


def test_a_damaged_file_is_refused(hub: Hub) -> None:
    path = hub.put(b"weights, cut", told=hashlib.sha256(b"weights, cut short").hexdigest())
    with pytest.raises(CheckpointError, match=r"its SHA-256 is \w{8}…, the published one is \w{8}…; delete the file"):
        resolve(NAME, cache_dir=hub.cache)
    assert path.exists()


def test_a_hash_in_the_table_goes_before_the_hubs(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put(b"weights")
    named = {NAME: dataclasses.replace(NAMED[NAME], sha256="0" * 64)}
    monkeypatch.setattr("swindow.checkpoints.hub.NAMED", named)
    with pytest.raises(CheckpointError, match="the published one is 00000000"):
        resolve(NAME, cache_dir=hub.cache)


NO = SimpleNamespace(request=None, headers={}, status_code=404)  # of the client's HTTP library, whichever it is


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError("no", response=NO), "gives its files only to those who accepted its terms"),
        (errors.RepositoryNotFoundError("no", response=NO), "the hub has no model.safetensors in timm/swin"),
        (errors.RemoteEntryNotFoundError("no", response=NO), "the hub has no model.safetensors in timm/swi"),
        (errors.LocalEntryNotFoundError("no"), r"cannot be downloaded \(no connection to the hub\); download it on"),
        (errors.HTTPError("the read\n timed out"), r"cannot be downloaded \(the read timed out\)"),
        (OSError(28, "No space left on device"), r"cannot be downloaded \(\[Errno 28\] No space left on device\)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_goes_wrong_is_said_in_one_line(
    error: Exception, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*args: Any, **fields: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match=message) as caught:
        resolve(NAME, cache_dir=tmp_path)
    assert "\n" not in str(caught.value)


def test_the_hub_is_asked_for_the_right_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(*args: Any, **fields: Any) -> str:
        asked.append((*args, fields["cache_dir"]))
        path = tmp_path / "file"
        path.write_bytes(b"weights")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    resolve(NAME)
    resolve(NAME, cache_dir=tmp_path)
    assert asked == [
        (SOURCE, "model.safetensors", huggingface_hub.constants.HF_HUB_CACHE),
        (SOURCE, "model.safetensors", tmp_path),
    ]


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(
        UnknownName, match=r"unknown published weights 'swin_tiny.ms_1k'; did you mean swin_tiny.ms_in1k"
    ):
        resolve("swin_tiny.ms_1k")


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"pip install 'swindow\[hub\]'"):
        resolve(NAME)


class TestOpenmmlab:
    """Its UPerNets as transformers has them, small and of five classes, in a cache of ours."""

    def served(self, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[tuple[str, str]]]:
        """What transformers writes of a model of this backbone's windows; the list fills with what is asked for."""
        import transformers

        config: Any = MODELS[NAMED[name].variant].backbone
        shape = {"embed_dim": 12, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 3, 4], "window_size": config.window}
        body = transformers.SwinConfig(**shape, out_features=["stage1", "stage2", "stage3", "stage4"])
        labels = {0: "wall", 1: "building", 2: "sky", 3: "floor", 4: "tree"}
        about = transformers.UperNetConfig(backbone_config=body, hidden_size=16, auxiliary_channels=8, id2label=labels)
        theirs = transformers.UperNetForSemanticSegmentation(about).eval()
        scramble(theirs)
        theirs.save_pretrained(folder)
        if NAMED[name].file == "pytorch_model.bin":  # of 2023: with indices, and without the norm that nobody uses
            state = load_file(folder / "model.safetensors")
            tables = [key for key in state if key.endswith("relative_position_bias_table")]
            index = relative_position_index((config.window, config.window))
            state |= {key.replace("bias_table", "index"): index for key in tables}
            kept = {key: x for key, x in state.items() if not key.startswith("backbone.swin.layernorm.")}
            assert len(kept) == len(state) - 2
            torch.save(kept, folder / "pytorch_model.bin")
            (folder / "model.safetensors").unlink()
        asked: list[tuple[str, str]] = []

        def download(source: str, file: str, **fields: Any) -> str:
            asked.append((source, file))
            return str(folder / file)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        return theirs, asked

    @pytest.mark.parametrize("name", ["upernet_swin_tiny.mmseg_ade20k", "upernet_swin_base_384.mmseg_ade20k"])
    def test_is_what_it_says_with_the_classes_of_the_config_beside_it(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        theirs, asked = self.served(name, tmp_path, monkeypatch)
        said: list[str] = []
        model = load(name, say=said.append)
        assert asked == [(NAMED[name].source, "config.json"), (NAMED[name].source, NAMED[name].file)]
        assert "assumed" not in said[0]
        assert model.classes == ("wall", "building", "sky", "floor", "tree")
        assert model.config.name == NAMED[name].variant
        assert model.preprocess == NAMED[name].preprocess
        assert (model.preprocess.fit, model.preprocess.size) == ("short", (512, 512))
        images = torch.randn(1, 3, 64, 96)
        with torch.no_grad():
            assert_close(model(images), theirs(images).logits, 1e-4)

    @pytest.mark.parametrize("name", OF_OPENMMLAB)
    def test_entry_has_the_shape_that_transformers_converter_gives_it(self, name: str) -> None:
        """Widths, depths and windows of its script for these weights; pretraining was on 224 pixels, or 384."""
        entry, size = NAMED[name], NAMED[name].source.rsplit("-", 1)[1]
        width, depth, window = {
            "tiny": (96, 6, 7),
            "small": (96, 18, 7),
            "base": (128, 18, 12),
            "large": (192, 18, 12),
        }[size]
        config: Any = MODELS[entry.variant].backbone
        assert (config.dim, config.depths, config.window) == (width, (2, 2, depth, 2), window)
        assert name == f"{entry.variant}.mmseg_ade20k"
        assert entry.fields == {"image_size": config.image_size, "window": window, "drop_path": 0.3}
        assert (entry.licence, entry.source) == ("mit", f"openmmlab/upernet-swin-{size}")


class TestDetectors:
    """Published detectors, small, in places of ours."""

    def test_facebook_s_detr_is_what_its_repository_and_the_list_of_names_say(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from transformers import DetrConfig, DetrForObjectDetection

        shape = {f"{part}_{what}": 1 for part in ("encoder", "decoder") for what in ("layers", "ffn_dim")}
        theirs = DetrForObjectDetection(DetrConfig(backbone="resnet18", d_model=32, num_labels=91, **shape)).eval()
        theirs.save_pretrained(tmp_path)
        asked: list[tuple[str, str]] = []

        def download(source: str, file: str, **fields: Any) -> str:
            asked.append((source, file))
            return str(tmp_path / file)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        said: list[str] = []
        model = load("detr_resnet50.fb_coco", say=said.append)
        assert asked == [("facebook/detr-resnet-50", "model.safetensors")]
        assert "assumed" not in said[0]
        assert (model.config.name, model.classes) == ("detr_resnet50", classes.coco_by_id())
        assert model.preprocess == usual_for_objects(3)

    def test_torchvision_s_file_of_old_names_needs_nothing_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = "mask_rcnn_resnet_50.tv_coco_boxes"
        own = build(
            "mask_rcnn_resnet_18", masks=False, convention="torchvision", num_classes=90, width=8, norm="frozen"
        )
        state = torch.load(save_as(own, tmp_path / "new.pth", "torchvision"), weights_only=True)
        old = {re.sub(r"(blocks\.\d)\.0\.|(head\.conv)\.0\.0\.", r"\1\2.", key): x for key, x in state.items()}
        torch.save(old, tmp_path / NAMED[name].file)
        digest = hashlib.sha256((tmp_path / NAMED[name].file).read_bytes()).hexdigest()
        monkeypatch.setattr("swindow.checkpoints.hub.NAMED", {name: dataclasses.replace(NAMED[name], sha256=digest)})
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        (tmp_path / "checkpoints").symlink_to(tmp_path)
        said: list[str] = []
        model = load(name, say=said.append)
        assert "assumed" not in said[0]
        assert (model.config.name, model.config.backbone.norm_eps) == ("mask_rcnn_resnet_50", 0.0)  # type: ignore[union-attr]
        assert model.classes == classes.coco_from_1()
        assert model.config.head.convention == "torchvision"


class TestTorchvision:
    """Its own files, in a folder of ours."""

    name = "swin_tiny.tv_in1k"

    def serve(self, monkeypatch: pytest.MonkeyPatch, content: bytes | Exception) -> list[str]:
        """Play torch's downloader; the list fills with what it was asked for."""
        asked: list[str] = []

        def download(url: str, dst: str) -> None:
            asked.append(url)
            if isinstance(content, Exception):
                raise content
            Path(dst).write_bytes(content)

        monkeypatch.setattr(torch.hub, "download_url_to_file", download)
        named = {self.name: dataclasses.replace(NAMED[self.name], sha256=hashlib.sha256(b"weights").hexdigest()[:8])}
        monkeypatch.setattr("swindow.checkpoints.hub.NAMED", named)
        return asked

    def test_is_downloaded_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = self.serve(monkeypatch, b"weights")
        path, entry = resolve(self.name, cache_dir=tmp_path / "new")
        assert (path, entry.variant) == (tmp_path / "new" / "swin_t-704ceda3.pth", "swin_tiny")
        resolve(self.name, cache_dir=tmp_path / "new")
        assert [url.rsplit("/", 1)[1] for url in asked] == ["swin_t-704ceda3.pth"]

    def test_goes_to_torchs_own_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.serve(monkeypatch, b"weights")
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        assert resolve(self.name).path == tmp_path / "checkpoints" / "swin_t-704ceda3.pth"

    def test_other_content_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.serve(monkeypatch, b"a page that says no")
        with pytest.raises(CheckpointError, match="its SHA-256 is"):
            resolve(self.name, cache_dir=tmp_path)

    def test_no_network_says_what_to_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.serve(monkeypatch, urllib.error.URLError("no route"))
        with pytest.raises(CheckpointError, match="no route") as caught:
            resolve(self.name, cache_dir=tmp_path)
        assert str(caught.value).endswith(f"or copy it to {tmp_path / 'swin_t-704ceda3.pth'}")
