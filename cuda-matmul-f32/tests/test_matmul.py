"""The public function: what it refuses and how it says so, and what the registry lists."""

from __future__ import annotations

import re
from pathlib import Path

import cuda_matmul_f32
import pytest
import torch
from cuda_matmul_f32 import build_info, kernels, matmul

A, B = torch.ones(3, 4), torch.ones(4, 5)
needs_extension = pytest.mark.skipif(build_info.module is None, reason=build_info.missing)


@pytest.mark.parametrize(
    ("a", "b", "error", "says"),
    [
        (A.double(), B, TypeError, "a must be float32, not Double: use a.float()"),
        (A, B.to(torch.bfloat16), TypeError, "b must be float32, not BFloat16: use b.float()"),
        (A[0].long(), B, TypeError, "a must be float32, not Long: use a.float()"),
        (A.to(torch.complex64), B, TypeError, "a must be float32, not ComplexFloat"),
        (A, B.numpy(), TypeError, "b must be a torch.Tensor, not ndarray"),
        (A.to_sparse(), B, TypeError, "a must be a dense tensor, not torch.sparse_coo"),
        (A, B.to_sparse(), TypeError, "b must be a dense tensor, not torch.sparse_coo"),
        (None, B, TypeError, "a must be a torch.Tensor, not NoneType"),
        (A, B.t(), ValueError, "a (3, 4) has 4 columns but b (5, 4) has 5 rows"),
        (A, B[0], ValueError, "a (3, 4) has 4 columns but b (5,) has 5 rows"),
        (A.to("meta"), B, ValueError, "a is on meta but b on cpu"),
        (A.double().to("meta"), B.to("meta"), TypeError, "a must be float32, not torch.float64"),
        (A.to("meta"), B.t().to("meta"), ValueError, "a (3, 4) has 4 columns but b (5, 4) has 5"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(a, b, error, says):
    with pytest.raises(error, match=re.escape(says)):
        matmul(a, b)


def test_an_unknown_kernel_lists_the_known():
    names = ", ".join(("auto", *(k.name for k in kernels("cpu"))))
    with pytest.raises(
        ValueError, match=re.escape(f"no kernel 'fastest' for cpu tensors: use {names}")
    ):
        matmul(A, B, kernel="fastest")


def test_a_kernel_of_the_other_ladder_is_unknown():
    with pytest.raises(ValueError, match="no kernel 'shared_tile' for cpu tensors"):
        matmul(A, B, kernel="shared_tile")


@pytest.mark.parametrize("precision", ["tf32", "bf16x6", "", None])
def test_an_unknown_precision_names_what_exists(precision):
    with pytest.raises(ValueError, match=re.escape("does not exist: use one of ('ieee',)")):
        matmul(A, B, precision=precision)


def test_meta_tensors_give_the_results_shape():
    assert matmul(A.to("meta"), B.to("meta")).shape == (3, 5)
    assert matmul(A.expand(2, 7, 3, 4).to("meta"), B.to("meta")).shape == (2, 7, 3, 5)


class _Counted(torch.Tensor):
    """A subclass that counts what torch hands to it."""

    calls = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.calls += "cuda_matmul_f32" in str(func)
        return super().__torch_function__(func, types, args, kwargs)


def test_tensor_subclasses_see_the_op_and_stay_themselves():
    c = matmul(A.as_subclass(_Counted), B)
    assert type(c) is _Counted
    assert _Counted.calls == 1
    assert torch.equal(c.as_subclass(torch.Tensor), A @ B)


@needs_extension
@pytest.mark.parametrize(
    ("a", "b", "kernel", "error", "says"),
    [
        (A.double(), B, "auto", TypeError, "a must be float32, not Double: use a.float()"),
        (A[0], B, "auto", ValueError, "two matrices or two batches of them, not shapes (4,)"),
        (A, B[None], "auto", ValueError, "not shapes (3, 4) and (1, 4, 5)"),
        (A[None], B.expand(2, 4, 5), "auto", ValueError, "batches of unequal length"),
        (A, B.t(), "auto", ValueError, "a (3, 4) has 4 columns but b (5, 4) has 5 rows"),
        (A, B, "fastest", ValueError, "no kernel 'fastest' for cpu tensors: use auto, naive"),
    ],
)
def test_the_op_called_directly_checks_too(a, b, kernel, error, says):
    with pytest.raises(error, match=re.escape(says)):
        torch.ops.cuda_matmul_f32.matmul(a, b, kernel)


@pytest.mark.gpu
def test_mixed_devices_are_refused():
    with pytest.raises(ValueError, match=r"a is on cuda:0 but b on cpu: move one with \.to"):
        matmul(A.cuda(), B)
    with pytest.raises(ValueError, match="a is on cuda:0 but b on cpu"):
        torch.ops.cuda_matmul_f32.matmul(A.cuda(), B, "auto")


def test_autocast_leaves_float32_alone(auto):
    a, b = auto.normals(30, 40).requires_grad_(), auto.normals(40, 50)
    with torch.autocast(auto.device, torch.bfloat16):
        c = auto(a, b)
        (grad,) = torch.autograd.grad(c.sum(), a)
    assert c.dtype == grad.dtype == torch.float32
    assert torch.equal(c, auto(a, b))


def test_inference_mode(auto):
    a, b = auto.integers(30, 40), auto.integers(40, 50)
    with torch.inference_mode():
        c = auto(a, b)
        out = torch.empty_like(c)
        auto(a, b, out=out)
    assert c.is_inference()
    assert torch.equal(c.cpu(), auto.exact(a, b))
    assert torch.equal(out, c)


def test_kernels_refuses_a_device_without_a_ladder():
    with pytest.raises(ValueError, match="no kernels for device type 'meta'"):
        kernels("meta")


def _check_ladder(device: str, ladder: list[tuple[int, str, str]]) -> None:
    folder = Path(cuda_matmul_f32.__file__).parent / "csrc" / device
    files = sorted(path.stem for path in folder.glob("[0-9]*"))
    assert files == [f"{number:02d}_{name}" for number, name, _ in ladder]
    assert [number for number, _, _ in ladder] == list(range(1, len(ladder) + 1))
    assert all(summary for _, _, summary in ladder)


@needs_extension
def test_the_cpu_ladder_is_its_numbered_files():
    _check_ladder("cpu", build_info.module.cpu_kernels())


@pytest.mark.skipif(not build_info.cuda, reason=build_info.missing)
def test_the_cuda_ladder_is_its_numbered_files():
    _check_ladder("cuda", build_info.module.cuda_kernels(-1))
