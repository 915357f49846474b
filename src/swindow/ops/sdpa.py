"""Window attention through torch's fused `scaled_dot_product_attention`."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from swindow.ops.reference import added_logits, per_head, unit
from swindow.ops.windows import Size, merge, partition


def window_attention(
    qkv: Float[Tensor, "B H W 3 N D"],
    bias: Float[Tensor, "N T T"] | None,
    *,
    window: Size,
    shift: Size,
    scale: float | Float[Tensor, " N"],
    cosine: bool = False,
) -> Float[Tensor, "B H W N D"]:
    """The contract of `swindow.ops.attention.window_attention`, without the attention matrix where torch can."""
    grid = qkv.shape[1], qkv.shape[2]
    windows = partition(qkv, window, shift)  # B G h w 3 N D
    images = windows.shape[:2]
    tokens = windows.flatten(2, 3).flatten(0, 1)  # BG T 3 N D: the one copy; heads are strides, not copies
    query, key, value = (x.transpose(1, 2) for x in tokens.unbind(2))
    if cosine:
        query, key = unit(query), unit(key)
    if isinstance(scale, Tensor):  # a scale per head has no place in SDPA's own argument
        query, scale = query * per_head(scale), 1.0
    mask = added_logits(bias, grid, window, shift, query)
    if mask is not None:  # fused kernels want four axes; with a shift, one mask a window, the same for every image
        mask = mask[None] if mask.ndim == 3 else mask.expand(images[0], *mask.shape).flatten(0, 1)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)  # BG N T D
    return merge(out.transpose(1, 2).unflatten(1, window).unflatten(0, images), grid, shift)
