"""The one legend of letters that shapes are written in, and names for the shapes that recur.

| letter | meaning                    | letter | meaning                                        |
|--------|----------------------------|--------|------------------------------------------------|
| B      | batch                      | T      | tokens per window, window height × width       |
| H W    | token grid                 | G      | windows per image, row-major                   |
| h w    | pixels (or window sides)   | N      | attention heads                                |
| C      | channels                   | D      | channels per head                              |
| M      | window side                | K      | classes                                        |

Images enter as ``B C h w``; inside, tokens are always ``B H W C``; windows exist only in `swindow.ops`.
"""

from jaxtyping import Float, Int64, UInt8
from torch import Tensor

IGNORE = -1
"""Label of a pixel that counts neither in a loss nor in a metric."""

Images = Float[Tensor, "B C h w"]
Pixels = UInt8[Tensor, "C h w"]
Mask = Int64[Tensor, "h w"]  # class indices and IGNORE
Tokens = Float[Tensor, "B H W C"]
Pyramid = tuple[Tensor, ...]  # NHWC maps, finest first; jaxtyping has no spelling for sizes that differ by item
