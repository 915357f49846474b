"""A backbone of ours in `torchvision.models.detection`: an ordered dict of maps of one width, and `out_channels`."""

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool

from swindow.model import MapBackbone
from swindow.shapes import Images


class BackboneWithFpn(nn.Module):
    """A feature pyramid network (Lin et al. 2017) on every map of a backbone; levels ``"0"``, ``"1"``, …, finest first.

    Args:
        body: as `swindow.backbone` builds it.
        out_channels: channels of every level.
        extra: what makes levels coarser than the backbone's; torchvision's R-CNNs expect the default, one level by
            pooling, and its RetinaNet ``LastLevelP6P7(out_channels, out_channels)``.
    """

    def __init__(self, body: MapBackbone, *, out_channels: int = 256, extra: ExtraFPNBlock | None = None) -> None:
        super().__init__()
        self.body, self.out_channels = body, out_channels
        self.fpn = FeaturePyramidNetwork(list(body.channels), out_channels, extra_blocks=extra or LastLevelMaxPool())

    def forward(self, images: Images) -> OrderedDict[str, Tensor]:
        maps = self.body(images)
        return self.fpn(OrderedDict((str(level), features) for level, features in enumerate(maps)))
