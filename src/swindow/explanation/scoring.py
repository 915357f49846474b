"""The number by which a detector scored an object: what Grad-CAM of a box takes the gradient of."""

from typing import cast

from jaxtyping import Float
from torch import Tensor

from swindow.heads import Detr, DetrOutputs, Rcnn, RcnnOutputs, RetinaNet, RetinaNetOutputs
from swindow.objects import Detections

Detector = Rcnn | RetinaNet | Detr
Outputs = RcnnOutputs | RetinaNetOutputs | DetrOutputs


def logit_of(head: Detector, outputs: Outputs, found: Detections, index: int) -> Float[Tensor, ""]:
    """The logit of the class of an object, of those `found` in the only picture.

    Of an R-CNN that of the region that the box was made from, mean over the stages of a cascade; of a RetinaNet that of
    the box's anchor; of a DETR that of the query in the last layer of the decoder.
    """
    row, label = cast(Tensor, found.queries)[index], found.labels[index]
    if isinstance(outputs, RcnnOutputs):
        rcnn = cast(Rcnn, head)
        (regions,) = rcnn.regions.proposals(*outputs)
        return rcnn.judgement(outputs, (regions[row][None],)).logits[0, label]
    if isinstance(outputs, RetinaNetOutputs):
        return outputs.logits[0, row, label]
    return outputs.logits[-1, 0, row, label]
