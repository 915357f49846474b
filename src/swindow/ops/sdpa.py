"""Window attention through torch's fused `scaled_dot_product_attention`."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from swindow.ops.reference import added_logits, join_heads, per_head, split_heads
from swindow.ops.windows import Size


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
    query, key, value = split_heads(qkv, window, shift)  # B G N T D
    if cosine:
        query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    query = query * per_head(scale)  # a scale per head has no place in SDPA's own argument
    mask = added_logits(bias, qkv.shape[1:3], window, shift, query)
    if mask is not None and mask.ndim == 4:  # one mask a window, the same for every image
        mask = mask.expand(query.shape[0], -1, -1, -1, -1).flatten(0, 1)
    out = F.scaled_dot_product_attention(
        query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), attn_mask=mask, scale=1.0
    )
    return join_heads(out.unflatten(0, query.shape[:2]), qkv.shape[1:3], window, shift)
