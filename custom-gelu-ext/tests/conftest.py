"""What the tests share: both devices, both modes, all dtypes."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=["none", "tanh"])
def approximate(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(
    params=[torch.float32, torch.float64, torch.float16, torch.bfloat16],
    ids=["float32", "float64", "float16", "bfloat16"],
)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param
