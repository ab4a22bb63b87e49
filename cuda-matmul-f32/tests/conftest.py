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

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return matmul(a, b, kernel=self.kernel)

    def integers(self, *shape: int, seed: int = 0) -> Tensor:
        """Integers from -8 to 8: every sum of fewer than 2^18 products is exact in float32.

        So a result is right or wrong, to the bit: no tolerance can hide a term left out.
        """
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(-8, 9, shape, generator=generator).float().to(self.device)

    def normals(self, *shape: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator).to(self.device)

    def check_exact(self, a: Tensor, b: Tensor) -> None:
        """Compare with float64 on the CPU: equal values, NaN and Inf in the same places."""
        c = self(a, b)
        assert c.shape == (a.shape[0], b.shape[1])
        assert c.dtype == torch.float32
        assert c.device == a.device
        assert c.is_contiguous()
        expected = (a.cpu().double() @ b.cpu().double()).float()
        torch.testing.assert_close(c.cpu(), expected, rtol=0, atol=0, equal_nan=True)


def _rungs() -> list[object]:
    cpu = [Rung("cpu", k.name) for k in cuda_matmul_f32.kernels("cpu")]
    cuda = [Rung("cuda", k.name) for k in cuda_matmul_f32.kernels("cuda")]
    return [
        *(pytest.param(r, id=f"cpu-{r.kernel}") for r in cpu),
        *(pytest.param(r, id=f"cuda-{r.kernel}", marks=pytest.mark.gpu) for r in cuda),
    ]


@pytest.fixture(params=_rungs())
def rung(request: pytest.FixtureRequest) -> Rung:
    """Each kernel of the CPU's ladder, and under -m gpu of the GPU's."""
    return request.param
