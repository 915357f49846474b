"""A training loop of your own around a swindow model: the head owns its loss, the optimiser groups are ours to use."""

import torch

import swindow
from swindow.optim import OptimConfig, Optimizer


def main() -> None:
    torch.manual_seed(0)
    model = swindow.build("swin_nano", num_classes=2, in_channels=1, dim=24).train()
    optimizer = Optimizer(model, OptimConfig(name="muon", lr=2e-3))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    labels = torch.arange(32) % 2
    images = torch.randn(32, 1, 28, 28) + 2 * labels[:, None, None, None]
    for step in range(10):
        loss = model.head.loss(model.outputs(images), labels)["cross_entropy"]
        loss.backward()
        optimizer.collect(scaler)
        optimizer.step(scaler)
        print(f"step {step}: loss {loss.item():.3f}")


if __name__ == "__main__":
    main()
