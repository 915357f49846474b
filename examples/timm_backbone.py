"""A Swin of ours where timm's models go: feature maps, and a classifier that timm's optimiser trains."""

import timm
import torch
from timm.optim import create_optimizer_v2

import swindow.interop.timm


def main() -> None:
    torch.manual_seed(0)
    swindow.interop.timm.register()
    images = torch.randn(1, 4, 128, 96)

    body = timm.create_model("swindow/swin_tiny", features_only=True, out_indices=(1, 2, 3), in_chans=4).eval()
    with torch.no_grad():
        maps = body(images)
    about = body.feature_info
    for features, channels, stride in zip(maps, about.channels(), about.reduction(), strict=True):
        print(f"stride {stride}: {channels} channels on a {features.shape[2]}x{features.shape[3]} grid")

    model = timm.create_model("swindow/swin_tiny", num_classes=3, in_chans=4, drop_path_rate=0.1)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    torch.nn.functional.cross_entropy(model(images), torch.tensor([2])).backward()
    optimizer.step()
    with torch.no_grad():
        print(f"the class that was taught: {model.eval()(images).argmax().item()}")


if __name__ == "__main__":
    main()
