"""What all tests share: every rung of both ladders, exact inputs, and an independent reference."""

from __future__ import annotations

from dataclasses import dataclass

import cuda_matmul_f32
import pytest
import torch
from cuda_matmul_f32 import matmul
from torch import Tensor


@dataclass(frozen=True)
class Rung:
    """One kernel on one device, with what a test asks of it."""

    device: str
    kernel: str

    def __call__(self, a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
        return matmul(a, b, out=out, kernel=self.kernel)

    def integers(self, *shape: int, seed: int = 0) -> Tensor:
        """Integers from -8 to 8: every sum of fewer than 2^18 products is exact in float32.

        So a result is right or wrong, to the bit: no tolerance can hide a term left out.
        """
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(-8, 9, shape, generator=generator).float().to(self.device)

    def normals(self, *shape: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator).to(self.device)

    def exact(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the product by torch in float64, rounded once, on the CPU."""
        return (a.detach().cpu().double() @ b.detach().cpu().double()).float()

    def check_exact(self, a: Tensor, b: Tensor) -> None:
        """Compare with float64 on the CPU: equal values, NaN and Inf in the same places."""
        c = self(a, b)
        expected = self.exact(a, b)
        assert c.shape == expected.shape
        assert c.dtype == torch.float32
        assert c.device == a.device
        assert c.is_contiguous()
        torch.testing.assert_close(c.cpu(), expected, rtol=0, atol=0, equal_nan=True)


def _rungs() -> list[object]:
    cpu = [k.name for k in cuda_matmul_f32.kernels("cpu")]
    cuda = [k.name for k in cuda_matmul_f32.kernels("cuda")]
    # "auto" on a GPU chooses among rungs by shape: one more thing to be right on every shape.
    cuda += ["auto"] if cuda else []
    return [
        *(pytest.param(Rung("cpu", name), id=f"cpu-{name}") for name in cpu),
        *(
            pytest.param(Rung("cuda", name), id=f"cuda-{name}", marks=pytest.mark.gpu)
            for name in cuda
        ),
    ]


@pytest.fixture(params=_rungs())
def rung(request: pytest.FixtureRequest) -> Rung:
    """Each kernel of the CPU's ladder, and under -m gpu of the GPU's."""
    return request.param


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def auto(request: pytest.FixtureRequest) -> Rung:
    """The device's own choice of kernel, for what does not depend on the rung."""
    return Rung(request.param, "auto")
