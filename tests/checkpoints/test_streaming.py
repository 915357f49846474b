"""Safetensors files, tensor by tensor: the same bytes as from the format's own writer, and all values finite."""

import pytest
import safetensors.torch
import torch

from swindow.checkpoints.streaming import CODES, pieces, refuse_unfinite
from swindow.errors import CheckpointError


def test_the_bytes_are_those_of_the_formats_own_writer():
    tensors = {str(dtype).split(".")[1]: torch.arange(5).to(dtype) for dtype in CODES}
    tensors |= {"a number": torch.tensor(2.5), "nothing": torch.empty(0, 3), 'é "quoted"': torch.ones(2, 2).half()}
    ours = b"".join(pieces(tensors, {"swindow": 'a = "ä"\n'}))
    assert ours == safetensors.torch.save(tensors, metadata={"swindow": 'a = "ä"\n'})


def test_views_are_written_as_what_they_show():
    whole = torch.arange(12.0).reshape(3, 4)
    found = safetensors.torch.load(b"".join(pieces({"turned": whole.T, "part": whole[1:, ::2]})))
    assert torch.equal(found["turned"], whole.T)
    assert torch.equal(found["part"], whole[1:, ::2])


def test_what_the_format_has_no_word_for_is_refused():
    with pytest.raises(CheckpointError, match=r"phase is torch\.complex64"):
        list(pieces({"phase": torch.zeros(1, dtype=torch.complex64)}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_one_value_that_is_not_finite_is_found(value, dtype):
    tensors = {"good": torch.full((33,), torch.finfo(dtype).max, dtype=dtype), "count": torch.tensor(2**62)}
    refuse_unfinite(tensors, "step 3")
    bad = torch.ones(7, 5, dtype=dtype)
    bad[3, 2] = value
    with pytest.raises(CheckpointError, match="step 3 is not saved: a/bad and 1 more holds values that are not finite"):
        refuse_unfinite(tensors | {"a/bad": bad, "worse": bad}, "step 3")
