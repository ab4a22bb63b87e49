"""What is refused, and whether the message names the value, the limit and the fix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from custom_gelu_ext import GELU, bias_gelu, build_info, geglu, gelu
from torch._subclasses.fake_tensor import FakeTensorMode

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
    with pytest.raises(TypeError, match=r"got torch\.int32; convert first"):
        ops.gelu(x.int())
    with pytest.raises(ValueError, match="'none' or 'tanh', got 'erf'"):
        ops.gelu(x, "erf")
    with pytest.raises(ValueError, match=r"\[4, 3\] must be x's, \[3, 4\]"):
        ops.gelu_backward(x.t(), x)
    with pytest.raises(ValueError, match=r"\[4\] must be x's, \[3, 4\]"):
        ops.gelu_backward(x[0], x)
    with pytest.raises(TypeError, match=r"dtype torch\.float64 must be x's, torch\.float32"):
        ops.gelu_backward(x.double(), x)
    with pytest.raises(TypeError, match=r"got torch\.int32"):
        ops.gelu_backward(x.int(), x.int())


@pytest.mark.gpu
def test_gradient_on_another_device():
    x = torch.ones(3, device="cuda")
    with pytest.raises((ValueError, RuntimeError), match="cpu"):
        torch.ops.custom_gelu_ext.gelu_backward(torch.ones(3), x)


def wrong_calls(x: torch.Tensor) -> dict[str, tuple[Any, ...]]:
    """Operators and arguments that no kernel takes; x is [3, 4]."""
    ops = torch.ops.custom_gelu_ext
    code = torch.zeros(12, dtype=torch.uint8, device=x.device)
    return {
        "gelu of integers": (ops.gelu, x.int()),
        "gelu_ of integers": (ops.gelu_, x.int()),
        "approximate": (ops.gelu, x, "erf"),
        "gradient's shape": (ops.gelu_backward, x.t(), x),
        "gradient's dtype": (ops.gelu_backward, x.double(), x),
        "second gradient": (ops.gelu_double_backward, x, x[:2], x),
        "bias's shape": (ops.bias_gelu, x, x[0, :3]),
        "bias's dtype": (ops.bias_gelu, x, x[0].double()),
        "no dimension": (ops.bias_gelu, x[0, 0], x[0]),
        "bias of integers": (ops.bias_gelu, x.int(), x[0].int()),
        "bias's gradient": (ops.bias_gelu_backward, x[:2], x, x[0]),
        "value's shape": (ops.geglu, x, x[:, :2]),
        "value's gradient": (ops.geglu_backward, x.double(), x, x),
        "8bit of integers": (ops.gelu_8bit, x.int()),
        "8bit code's size": (ops.gelu_8bit_backward, x, code[1:]),
        "1bit code's size": (ops.gelu_1bit_backward, x, x, code),
        "1bit value": (ops.gelu_1bit_backward, x, x[:2], code[:2]),
    }


def error_of(call: Callable[..., Any], *arguments: Any) -> tuple[type, str]:
    with pytest.raises((TypeError, ValueError)) as raised:
        call(*arguments)
    return raised.type, str(raised.value)


@needs_extension
@pytest.mark.parametrize("name", wrong_calls(torch.ones(3, 4)))
def test_fake_kernels_refuse_what_the_kernels_refuse(name):
    if not hasattr(build_info.module, "gelu"):
        pytest.skip("the stable build's messages are shorter")
    real = error_of(*wrong_calls(torch.ones(3, 4))[name])
    assert error_of(*wrong_calls(torch.ones(3, 4, device="meta"))[name]) == real
    with FakeTensorMode():
        assert error_of(*wrong_calls(torch.ones(3, 4))[name]) == real


@needs_extension
def test_a_mix_of_devices_is_refused_where_one_has_no_values():
    x, meta = torch.ones(2, 4), torch.ones(2, 4, device="meta")
    with pytest.raises(ValueError, match="bias is on meta but x on cpu"):
        bias_gelu(x, meta[0])
    with pytest.raises(ValueError, match="value is on cpu but gate on meta"):
        geglu(meta, x)
    with pytest.raises(ValueError, match="grad is on meta but x on cpu"):
        torch.ops.custom_gelu_ext.gelu_backward(meta, x)


@needs_extension
def test_export_refuses_what_the_call_refuses():
    class Gated(torch.nn.Module):
        def forward(self, gate: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            return geglu(gate, value)

    with pytest.raises(ValueError, match=r"\[5, 5\] must be gate's, \[2, 4\]"):
        torch.export.export(Gated(), (torch.ones(2, 4), torch.ones(5, 5)))
