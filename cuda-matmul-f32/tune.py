"""python benchmark.py --tune: fit how long each rung takes to what it estimates, for kernel="auto".

Every rung that "auto" chooses from estimates its own cycles for a product, from how its tiles and
slices fill the multiprocessors. Here each is timed on sizes of all kinds, and two numbers are
fitted for it: what a call takes whatever it computes, and the time of an estimated cycle. They go
into csrc/cuda/tuned.h, one row for each kind of GPU, which the next import compiles.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import cuda_matmul_f32
import numpy as np
import torch
from cuda_matmul_f32 import build_info, matmul

Size = tuple[int, int, int]
Fit = tuple[float, float]  # microseconds of a call, microseconds of an estimated cycle

SIZES: list[Size] = [
    *((n, n, n) for n in (64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 2304, 3000, 4096)),
    *((m, 4096, 4096) for m in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)),
    *((4096, n, 4096) for n in (1, 8, 64)),
    *((4096, 4096, k) for k in (1, 16, 64, 256)),
    *((128, 128, k) for k in (1024, 8192, 16384)),
    *((512, 512, k) for k in (64, 2048, 8192)),
    (1, 1000, 1000),
    (8, 30000, 2000),
    (16, 11008, 4096),
    (1000, 1000, 1000),
    (4095, 4097, 1023),
    (32768, 256, 1024),
]


def tune() -> Path:
    """Measure, fit, and write this GPU's row of tuned.h; return the file's path."""
    times: dict[Size, dict[str, float]] = {}
    cycles: dict[Size, dict[str, float]] = {}
    for size in SIZES:
        assert build_info.module is not None
        estimates = build_info.module.estimated_cycles(*size, torch.cuda.current_device())
        # A rung that is not meant for a size estimates infinity.
        cycles[size] = {rung: count for rung, count in estimates if math.isfinite(count)}
        times[size] = {rung: _microseconds(size, rung) for rung in cycles[size]}
        best = min(times[size], key=times[size].__getitem__)
        listed = "  ".join(f"{rung} {us:.1f}" for rung, us in times[size].items())
        print(f"{'x'.join(map(str, size)):>16}: {best}, of {listed} us", flush=True)
    rungs = sorted({rung for found in cycles.values() for rung in found})
    fits = {rung: _fit(rung, times, cycles) for rung in rungs}
    losses = [_loss(fits, times[size], cycles[size]) for size in SIZES]
    mean, worst = statistics.geometric_mean(losses), int(np.argmax(losses))
    print(f"chosen against best: mean {mean:.3f}x, worst {losses[worst]:.2f}x at {SIZES[worst]}")
    return _write(fits)


def _microseconds(size: Size, rung: str) -> float:
    m, n, k = size
    # Several sets of inputs, more than the L2 cache holds: a real program's are seldom there.
    sets = max(1, min(8, 2**28 // (4 * (m * k + k * n))))
    inputs = [
        (torch.randn(m, k, device="cuda"), torch.randn(k, n, device="cuda")) for _ in range(sets)
    ]
    out = torch.empty(m, n, device="cuda")

    def elapsed(call: Callable[[], object]) -> float:
        start, end = torch.cuda.Event(True), torch.cuda.Event(True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3

    def multiply(i: int) -> None:
        matmul(*inputs[i % sets], out=out, kernel=rung)

    multiply(0)
    once = elapsed(lambda: multiply(0))
    calls = max(sets, min(50, int(3e3 / once)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(calls):
            multiply(i)
    graph.replay()
    return statistics.median(elapsed(graph.replay) for _ in range(3)) / calls


def _fit(
    rung: str, times: dict[Size, dict[str, float]], cycles: dict[Size, dict[str, float]]
) -> Fit:
    """Fit times by least squares of relative errors; the nearer to the fastest, the more weight."""
    sizes = [size for size in times if rung in times[size]]
    estimated = np.array([cycles[size][rung] for size in sizes])
    measured = np.array([times[size][rung] for size in sizes])
    weight = np.array([min(times[size].values()) for size in sizes]) / measured
    rows = np.stack([1.0 / measured, estimated / measured], axis=1) * weight[:, None]
    (launch, cycle), *_ = np.linalg.lstsq(rows, weight, rcond=None)
    if launch < 0:
        launch = 0.0
        (cycle,), *_ = np.linalg.lstsq(rows[:, 1:], weight, rcond=None)
    return float(launch), float(cycle)


def _loss(fits: dict[str, Fit], times: dict[str, float], cycles: dict[str, float]) -> float:
    """Return how much slower the rung that the fits choose is than the fastest."""
    chosen = min(cycles, key=lambda rung: fits[rung][0] + fits[rung][1] * cycles[rung])
    return times[chosen] / min(times.values())


def _write(fits: dict[str, Fit]) -> Path:
    path = Path(cuda_matmul_f32.__file__).parent / "csrc" / "cuda" / "tuned.h"
    major, minor = torch.cuda.get_device_capability()
    rungs = ",\n      ".join(
        f'{{"{rung}", {launch:.3g}, {cycle:.3g}}}' for rung, (launch, cycle) in fits.items()
    )
    name = json.dumps(torch.cuda.get_device_name())
    row = f"    {{{10 * major + minor},\n     {name},\n     {{{rungs}}}}},\n"
    text = path.read_text()
    # This kind's row anew; those of other kinds stay.
    text = re.sub(rf"    {{{10 * major + minor},\n.*?}}}}}},\n", "", text, flags=re.DOTALL)
    text = text.replace("kTuned[] = {\n", "kTuned[] = {\n" + row)
    path.write_text(text)
    return path
