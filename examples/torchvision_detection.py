"""A Swin of ours in torchvision's Faster R-CNN: steps of training on one made-up image, then boxes."""

import torch
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

import swindow
from swindow.interop.torchvision import BackboneWithFpn


def main() -> None:
    torch.manual_seed(0)
    body = swindow.backbone("swin_tiny", out_stages=(0, 1, 2), dim=24, drop_path=0.0)
    sizes = ((8,), (16,), (32,), (64,))  # one for each level: three stages, and one more by pooling
    model = FasterRCNN(
        BackboneWithFpn(body, out_channels=32),
        num_classes=2,
        min_size=96,
        box_batch_size_per_image=16,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        box_roi_pool=MultiScaleRoIAlign(featmap_names=["0", "1", "2"], output_size=7, sampling_ratio=2),
    )

    image = torch.rand(3, 96, 128) / 4
    image[:, 30:70, 40:100] = 1
    target = {"boxes": torch.tensor([[40.0, 30.0, 100.0, 70.0]]), "labels": torch.tensor([1])}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    for step in range(60):
        loss = sum(model([image], [target]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 19:
            print(f"step {step}: loss {loss.item():.3f}")

    with torch.no_grad():
        (found,) = model.eval()([image])
    box = [round(side) for side in found["boxes"][0].tolist()]
    print(f"best box {box}, score {found['scores'][0].item():.2f}")


if __name__ == "__main__":
    main()
