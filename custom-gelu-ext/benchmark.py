"""python benchmark.py [--quick] [--out DIR]: speed and error of our GELU against torch's.

Without a GPU it runs the CPU kernels, with one the CUDA kernels. Three kinds of cases:

* forward and backward, exact and tanh: our kernel against torch's, verified against float64;
* copy and add: torch moving the same bytes as GELU's forward (one in, one out) and backward (two
  in, one out) with next to no arithmetic: the speed that memory allows. They are cases of their
  own, since they compute something else; compare their GB/s with GELU's;
* accuracy: the largest error over every 16-bit value, or over the whole float32 tail.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import infra_bench
except ModuleNotFoundError:  # not installed: use the one in the checkout that this file lies in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    try:
        import infra_bench  # noqa: F401
    except ModuleNotFoundError:
        sys.exit(
            "benchmark.py needs its harness: use the whole checkout, or pip install infra-bench"
        )

import custom_gelu_ext
from custom_gelu_ext import build_info, gelu

from infra_bench import Case, Implementation, Row, Run

# Relative Frobenius errors: a few times what rounding the result to the type leaves.
TOLERANCE = {torch.float32: 5e-7, torch.float16: 5e-4, torch.bfloat16: 4e-3}
MODES = {"exact": "none", "tanh": "tanh"}
C1 = 2 * math.sqrt(2 / math.pi)
C3 = 0.044715 * C1


def reference(x: Tensor, approximate: str) -> Tensor:
    """gelu(x) in float64, in a form that does not cancel in the left tail."""
    if approximate == "tanh":
        return x * torch.sigmoid(C1 * x + C3 * x**3)
    return x * torch.special.erfc(-x / math.sqrt(2)) / 2


def reference_backward(grad: Tensor, x: Tensor, approximate: str) -> Tensor:
    """Grad * gelu'(x) in float64."""
    if approximate == "tanh":
        w = C1 * x + C3 * x**3
        slope = torch.sigmoid(w) * (1 + x * (C1 + 3 * C3 * x * x) * torch.sigmoid(-w))
    else:
        density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        slope = torch.special.erfc(-x / math.sqrt(2)) / 2 + x * density
    return grad * slope


def backward(grad: Tensor, x: Tensor, approximate: str) -> Tensor:
    """What autograd calls: our operator, or torch's where nothing could be compiled."""
    if build_info.module is None:
        return torch.ops.aten.gelu_backward(grad, x, approximate=approximate)
    return torch.ops.custom_gelu_ext.gelu_backward(grad, x, approximate)


def draw(n: int, dtype: torch.dtype, count: int) -> Callable[..., tuple[Tensor, ...]]:
    """Return what draws ``count`` tensors of n normal values, on the generator's device."""

    def inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        device = generator.device
        return tuple(
            torch.randn(n, generator=generator, device=device, dtype=dtype) for _ in range(count)
        )

    return inputs


def speed_cases(
    mode: str, dtype: torch.dtype, n: int
) -> Iterator[tuple[Case, list[Implementation]]]:
    """Forward and backward of one mode, type and size, each with its implementations."""
    approximate, size, short = MODES[mode], f"2^{int(math.log2(n))}", str(dtype).split(".")[1]
    params = {"mode": mode, "dtype": short, "elements": n, "size": size}
    yield (
        Case(
            name=f"{mode} forward {short} {size}",
            inputs=draw(n, dtype, 1),
            reference=lambda x: reference(x, approximate),
            tolerance=TOLERANCE[dtype],
            baseline="F.gelu",
            bytes=2.0 * n * dtype.itemsize,
            params={**params, "direction": "forward"},
        ),
        [
            Implementation("custom_gelu_ext", lambda x: gelu(x, approximate)),
            Implementation("F.gelu", lambda x: F.gelu(x, approximate=approximate), ours=False),
        ],
    )
    yield (
        Case(
            name=f"{mode} backward {short} {size}",
            inputs=draw(n, dtype, 2),
            reference=lambda grad, x: reference_backward(grad, x, approximate),
            tolerance=TOLERANCE[dtype],
            baseline="F.gelu",
            bytes=3.0 * n * dtype.itemsize,
            params={**params, "direction": "backward"},
        ),
        [
            Implementation("custom_gelu_ext", lambda grad, x: backward(grad, x, approximate)),
            Implementation(
                "F.gelu",
                lambda grad, x: torch.ops.aten.gelu_backward(grad, x, approximate=approximate),
                ours=False,
            ),
        ],
    )


def ceiling_cases(dtype: torch.dtype, n: int) -> Iterator[tuple[Case, list[Implementation]]]:
    """Torch's copy and add at the same bytes: the speed that memory allows."""
    size, short = f"2^{int(math.log2(n))}", str(dtype).split(".")[1]
    for name, count, function in (
        ("copy", 1, lambda x: x.clone()),
        ("add", 2, lambda grad, x: grad + x),
    ):
        case = Case(
            name=f"{name} {short} {size}",
            inputs=draw(n, dtype, count),
            reference=function,
            tolerance=TOLERANCE[dtype],
            baseline=f"torch {name}",
            bytes=(count + 1.0) * n * dtype.itemsize,
            params={"mode": name, "dtype": short, "elements": n, "size": size},
        )
        yield case, [Implementation(f"torch {name}", function, ours=False)]


def largest_error(got: Tensor, x: Tensor, approximate: str) -> float:
    """Units in the last place for 16-bit types; the relative error of normal float32 results."""
    exact = reference(x.double(), approximate)
    info = torch.finfo(x.dtype)
    error = (got.double() - exact).abs()
    if x.dtype == torch.float32:
        normal = exact.abs() >= info.tiny
        return float((error[normal] / exact[normal].abs()).max())
    exponent = torch.frexp(exact).exponent - 1
    exponent = exponent.clamp_min(round(math.log2(info.tiny)))
    return float((error / (torch.exp2(exponent.double()) * info.eps)).max())


def values(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Every 16-bit value, or a dense float32 sweep, between -1000 and 1000."""
    if dtype == torch.float32:
        tail = torch.linspace(-15, 5, 2_000_001)
        small = torch.logspace(-37, 3, 200_001, dtype=torch.float64).float()
        x = torch.cat([tail, small, -small])
    else:
        x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return x[x.abs() <= 1000].to(device)


def add_accuracy(run: Run, mode: str, dtype: torch.dtype, device: torch.device) -> None:
    """Record the largest error of ours and of torch's forward over ``values``."""
    x, approximate, short = values(dtype, device), MODES[mode], str(dtype).split(".")[1]
    unit = "relative" if dtype == torch.float32 else "ulp"
    ours = largest_error(gelu(x, approximate), x, approximate)
    torchs = largest_error(F.gelu(x, approximate=approximate), x, approximate)
    run.add(
        f"{mode} accuracy {short}",
        [
            Row("custom_gelu_ext", "largest error", unit, [ours], better="lower"),
            Row("F.gelu", "largest error", unit, [torchs], ours=False, better="lower"),
        ],
        baseline="F.gelu",
        params={"mode": mode, "dtype": short, "values": x.numel()},
    )


def plan(device: torch.device, quick: bool) -> Iterator[tuple[str, torch.dtype, int]]:
    """Yield the mode, type and size of every speed case."""
    if device.type == "cuda":
        for mode in ("exact",) if quick else MODES:
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                for exponent in (20, 24, 28):
                    yield mode, dtype, 2**exponent
        return
    yield from (("exact", torch.float32, 2**e) for e in (16, 20))
    yield "exact", torch.bfloat16, 2**20
    yield "tanh", torch.float32, 2**20
    if not quick:
        yield "exact", torch.bfloat16, 2**16
        yield "tanh", torch.bfloat16, 2**20
        yield from ((mode, torch.float16, 2**20) for mode in MODES)
        yield from (("exact", dtype, 2**24) for dtype in (torch.float32, torch.bfloat16))


def main() -> int:
    """Run all cases; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a minute's worth of cases")
    parser.add_argument("--out", type=Path, help="folder for the record instead of results/")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(
        "custom-gelu-ext", directory=Path(__file__).parent, version=custom_gelu_ext.__version__
    )
    budget = 0.2 if args.quick else 0.4
    accuracy_of = (torch.float32, torch.float16, torch.bfloat16)
    for mode in MODES:
        for dtype in accuracy_of:
            add_accuracy(run, mode, dtype, device)
    plans = list(plan(device, args.quick))
    for dtype, n in dict.fromkeys((dtype, n) for _, dtype, n in plans):
        for case, implementations in ceiling_cases(dtype, n):
            run.measure(case, implementations, device=device, budget_s=budget)
    for mode, dtype, n in plans:
        for case, implementations in speed_cases(mode, dtype, n):
            run.measure(case, implementations, device=device, budget_s=budget)
    run.finish(out=args.out)
    return run.exit_code


if __name__ == "__main__":
    sys.exit(main())
