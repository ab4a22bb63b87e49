"""What is refused, and whether the message names the value, the limit and the fix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from custom_gelu_ext import GELU, build_info, gelu

needs_extension = pytest.mark.skipif(build_info.module is None, reason=build_info.missing)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.complex64])
def test_other_dtypes(device, dtype):
    x = torch.ones(3, device=device).to(dtype)
    with pytest.raises(TypeError, match=r"float32, float64, float16 or bfloat16, got torch\."):
        gelu(x)


@pytest.mark.parametrize("x", [1.0, [1.0, 2.0], np.ones(3, np.float32), None])
def test_no_tensor(x):
    with pytest.raises(TypeError, match=f"must be a torch.Tensor, got {type(x).__name__}"):
        gelu(x)


@pytest.mark.parametrize("approximate", ["exact", "", "Tanh", None, True])
def test_unknown_approximation(approximate):
    with pytest.raises(ValueError, match="'none' or 'tanh', got"):
        gelu(torch.ones(3), approximate)
    with pytest.raises(ValueError, match="'none' or 'tanh', got"):
        GELU(approximate)


def test_sparse_tensors():
    with pytest.raises(TypeError, match=r"dense.*to_dense"):
        gelu(torch.eye(3).to_sparse())


@needs_extension
def test_operators_check_for_themselves(device):
    ops = torch.ops.custom_gelu_ext
    x = torch.ones(3, 4, device=device)
    with pytest.raises(TypeError, match="got Int; convert first"):
        ops.gelu(x.int())
    with pytest.raises(ValueError, match="'none' or 'tanh', got 'erf'"):
        ops.gelu(x, "erf")
    with pytest.raises(ValueError, match=r"\[4, 3\] must be x's, \[3, 4\]"):
        ops.gelu_backward(x.t(), x)
    with pytest.raises(ValueError, match=r"\[4\] must be x's, \[3, 4\]"):
        ops.gelu_backward(x[0], x)
    with pytest.raises(TypeError, match="dtype Double must be x's, Float"):
        ops.gelu_backward(x.double(), x)
    with pytest.raises(TypeError, match="got Int"):
        ops.gelu_backward(x.int(), x.int())


@pytest.mark.gpu
def test_gradient_on_another_device():
    x = torch.ones(3, device="cuda")
    with pytest.raises((ValueError, RuntimeError), match="cpu"):
        torch.ops.custom_gelu_ext.gelu_backward(torch.ones(3), x)
