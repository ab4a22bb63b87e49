"""A launch that comes late on a GPU is not what a sample shows."""

import time

import pytest
import torch
from torch import Tensor

from infra_bench.cuda import MOST_TAKES, EventTimer, Flush
from infra_bench.timing import InputSets

pytestmark = pytest.mark.gpu


def test_a_late_launch_is_taken_again() -> None:
    calls = late = 0

    def double(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == late:
            time.sleep(0.05)  # as when the processor is given to someone else
        return x.mul_(2)

    device = torch.device("cuda")
    inputs = InputSets([(torch.ones(1 << 20, device=device),)], inplace=True)
    timer = EventTimer(inputs, Flush(device))
    pace = timer.pace(double)
    before, late = calls, calls + 1
    seconds, doubled = timer.sample(pace, 0)
    assert calls >= before + 2
    assert seconds < 0.05
    assert torch.all(doubled == 2)  # of the same contents again


def test_a_call_that_waits_for_the_gpu_is_taken_a_few_times_only() -> None:
    calls = 0

    def waiting(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        torch.cuda.synchronize()
        return x + 1

    device = torch.device("cuda")
    timer = EventTimer(InputSets([(torch.ones(8, device=device),)], inplace=False), Flush(device))
    pace = timer.pace(waiting)
    before = calls
    _, result = timer.sample(pace, 0)
    assert calls == before + MOST_TAKES
    assert torch.all(result == 2)
