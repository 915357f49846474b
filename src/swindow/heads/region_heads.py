"""What is said of one region: of which class it is and where its object's box lies, and the object's mask in it.

The box head is two linear layers (Faster R-CNN with FPN) or convolutions and one linear layer (Wu and He 2018,
arXiv 1803.08494, section 5.2); the mask head is Mask R-CNN's (arXiv 1703.06870, figure 4).
"""

from typing import cast

from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

BOX_GRID = 7
"""Cells along each side of what a box head sees."""
MASK_GRID = 14
"""The same of a mask head, which answers on twice as many."""


class ConvNorm(nn.Module):
    """A 3x3 convolution without a bias, batch norm and ReLU; no region at all has no statistics and moves none."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "R C s s"]) -> Float[Tensor, "R D s s"]:
        x = self.conv(x)
        # Synchronised over processes it takes part even with nothing of its own.
        if len(x) == 0 and type(self.norm) is nn.BatchNorm2d:
            norm = self.norm
            return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return F.relu(self.norm(x))


class BoxHead(nn.Module):
    """Cells of a region to a logit for each class and for background, which is last, and four deltas.

    Those are one set for all classes (``agnostic``) or one for each.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        width: int,
        convs: int,
        linears: int,
        conv_width: int,
        agnostic: bool,
    ) -> None:
        super().__init__()
        wides = [in_channels, *[conv_width] * convs]
        self.convs = nn.ModuleList(ConvNorm(before, conv_width) for before in wides[:-1])
        wides = [wides[-1] * BOX_GRID**2, *[width] * linears]
        hidden = [nn.Linear(before, width) for before in wides[:-1]]
        self.linears = nn.ModuleList(hidden)
        self.logits = nn.Linear(wides[-1], num_classes + 1)
        self.deltas = nn.Linear(wides[-1], 4 if agnostic else 4 * num_classes)
        for linear in hidden:
            nn.init.xavier_uniform_(linear.weight)
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for linear in (*hidden, self.logits, self.deltas):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "R C s s"]) -> tuple[Float[Tensor, "R K1"], Float[Tensor, "R N 4"]]:
        for conv in self.convs:
            x = conv(x)
        x = x.flatten(1)
        for linear in self.linears:
            x = F.relu(linear(x))
        return self.logits(x), self.deltas(x).unflatten(1, (-1, 4))


class MaskHead(nn.Module):
    """Cells of a region to a logit for each class and each cell of a grid twice as fine."""

    def __init__(self, in_channels: int, num_classes: int, *, width: int, convs: int) -> None:
        super().__init__()
        wides = [in_channels, *[width] * convs]
        self.convs = nn.ModuleList(nn.Conv2d(before, width, 3, padding=1) for before in wides[:-1])
        self.enlarge = nn.ConvTranspose2d(wides[-1], width, 2, stride=2)
        self.logits = nn.Conv2d(width, num_classes, 1)
        for layer in (*self.convs, self.enlarge, self.logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "R C s s"]) -> Float[Tensor, "R K t t"]:
        return self.logits(self.features(x))

    def of_class(self, x: Float[Tensor, "R C s s"], labels: Int64[Tensor, " R"]) -> Float[Tensor, "R t t"]:
        """The logits of one class for each region, without those of the others."""
        x = self.features(x)
        kernels = self.logits.weight[labels].flatten(1)[:, None]  # R 1 D
        bias = cast(Tensor, self.logits.bias)[labels]
        logits = (kernels @ x.flatten(2))[:, 0] + bias[:, None]
        return logits.unflatten(1, (x.shape[2], x.shape[3]))

    def features(self, x: Float[Tensor, "R C s s"]) -> Float[Tensor, "R D t t"]:
        """What logits are made of."""
        for conv in self.convs:
            x = F.relu(conv(x))
        return F.relu(self.enlarge(x))
