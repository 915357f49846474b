"""A Swin V2 of ours in a segmentation model of Hugging Face transformers, trained a step, saved and loaded."""

import tempfile

import torch
from transformers import UperNetConfig, UperNetForSemanticSegmentation
from transformers.utils import logging

from swindow.interop.transformers import SwindowConfig, register


def main() -> None:
    logging.disable_progress_bar()
    register()
    torch.manual_seed(0)
    backbone = SwindowConfig(
        variant="swin_v2_tiny_w8",
        fields={"dim": 24, "image_size": 64},
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = UperNetConfig(backbone_config=backbone, hidden_size=32, num_labels=3, use_auxiliary_head=False)
    model = UperNetForSemanticSegmentation(config)

    images, labels = torch.randn(2, 3, 64, 96), torch.randint(0, 3, (2, 64, 96))
    loss = model(images, labels=labels).loss
    loss.backward()
    print(f"loss {loss.item():.3f} on maps of {model.backbone.channels} channels")

    with tempfile.TemporaryDirectory() as folder:
        model.eval().save_pretrained(folder)
        again = UperNetForSemanticSegmentation.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, again(images).logits)
    print("saved and loaded: the same answers")


if __name__ == "__main__":
    main()
