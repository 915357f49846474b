"""Small detectors for tests, and one that answers what it is told to."""

import torch

from swindow.backbones import SwinConfig
from swindow.data.annotated import annotated_in_memory
from swindow.heads import DetrConfig, MaskRcnnConfig, RegionConfig
from swindow.inference import ReadyModel
from swindow.model import ModelConfig
from swindow.preprocess import Preprocess

CLASSES = ("cell", "platelet", "parasite", "debris")


def tiny_detr(*, classes=CLASSES, masks=False, preprocess=None, **fields):
    """A DETR with a transformer of 16 channels over two stages of a Swin, untrained."""
    shape = {"dim": 8, "depths": (1, 1), "num_heads": (2, 4), "window": 4, "patch": 2, "drop_path": 0.0}
    small = {"transformer_width": 16, "transformer_heads": 2, "feed_forward": 32, "num_queries": 12}
    head = DetrConfig(
        num_classes=len(classes), encoder_layers=1, decoder_layers=2, masks=masks, **{"divisor": 4, **small, **fields}
    )
    model = ModelConfig(name="detr_tiny", backbone=SwinConfig(**shape), head=head).build().eval()
    model.classes = tuple(classes)
    model.preprocess = preprocess or Preprocess(size=(32, 48), fit="within", mean=(0.5,) * 3, std=(0.25,) * 3)
    return model


def tiny_rcnn(*, classes=CLASSES, masks=True):
    """A Mask R-CNN on three stages of a Swin, untrained, that finds something of every class everywhere."""
    shape = {"dim": 8, "depths": (1, 1, 1), "num_heads": (1, 2, 2), "window": 4, "patch": 2, "drop_path": 0.0}
    small = {"pyramid_width": 16, "box_width": 16, "mask_convs": 1, "mask_width": 8, "score_threshold": 0.01}
    regions = RegionConfig(candidates=(60, 40), proposals=(30, 20))
    head = MaskRcnnConfig(num_classes=len(classes), masks=masks, regions=regions, **small)
    model = ModelConfig(name="mask_rcnn_tiny", backbone=SwinConfig(**shape), head=head).build().eval()
    model.classes = tuple(classes)
    model.preprocess = Preprocess(size=(32, 48), fit="within", mean=(0.5,) * 3, std=(0.25,) * 3)
    return model


def numbered(size, row):
    """A grey picture that says which one it is, in its first pixel."""
    picture = torch.full((3, *size), 90, dtype=torch.uint8)
    picture[:, 0, 0] = row
    return picture


def pictures_of(pairs, *, classes=CLASSES):
    """Annotated pictures of random sets, each numbered."""
    pictures = [numbered(found.size, row) for row, (_, found) in enumerate(pairs)]
    return annotated_in_memory(pictures, [truth for truth, _ in pairs], classes=classes)


def answering(monkeypatch, pairs):
    """Every detector answers numbered pictures with these detections; a list of how many it was asked at a time."""
    asked = []

    def detect(self, pixels, *, limits=None):
        pictures = [pixels] if isinstance(pixels, torch.Tensor) and pixels.ndim == 3 else list(pixels)
        asked.append([int(picture[0, 0, 0]) for picture in pictures])
        return [pairs[row][1] for row in asked[-1]]

    monkeypatch.setattr(ReadyModel, "detect", detect)
    return asked
