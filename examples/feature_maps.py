"""A Swin as the backbone of something of your own: one NCHW map per stage, for images of any size."""

import torch

import swindow


def main() -> None:
    body = swindow.backbone("swin_nano", out_stages=(0, 1), in_channels=4).eval()
    with torch.no_grad():
        maps = body(torch.randn(1, 4, 50, 77))
    for features, channels, stride in zip(maps, body.channels, body.strides, strict=True):
        print(f"stride {stride}: {channels} channels on a {features.shape[2]}x{features.shape[3]} grid")


if __name__ == "__main__":
    main()
