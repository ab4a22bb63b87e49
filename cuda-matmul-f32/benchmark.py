"""python benchmark.py [--quick] [--device cpu|cuda] [--kernels NAME ...] [--sizes 1024 MxNxK ...]

Climb the ladder: time each kernel and torch.matmul on the same FP32 products, each checked against
float64 before and after. Sizes are M x N x K; one number is a square. Runs the CUDA ladder where
there is a GPU, else the CPU's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cuda_matmul_f32
import torch
from cuda_matmul_f32 import Kernel, build_info, kernels, matmul
from torch import Tensor

try:
    from infra_bench import Case, Implementation, Run
except ModuleNotFoundError:  # not installed: use the one in the checkout that this file lies in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    try:
        from infra_bench import Case, Implementation, Run
    except ModuleNotFoundError:
        sys.exit(
            "benchmark.py needs its harness: use the whole checkout, or pip install infra-bench"
        )

Size = tuple[int, int, int]

QUICK: dict[str, list[Size]] = {
    "cpu": [(256, 256, 256), (512, 512, 512), (1024, 1024, 1024)],
    "cuda": [(512, 512, 512), (1024, 1024, 1024), (2048, 2048, 2048), (1023, 1025, 511)],
}
FULL: dict[str, list[Size]] = {
    "cpu": [(n, n, n) for n in (256, 512, 1024, 2048)] + [(1023, 1025, 511), (127, 129, 8191)],
    "cuda": [(n, n, n) for n in (512, 1024, 2048, 4096, 8192)]
    + [(1000, 1000, 1000), (4095, 4097, 1023), (8191, 8193, 127), (127, 129, 8191)],
}
# The most multiply-adds that a kernel is asked for, so that no single call takes many seconds.
LIMITS = {("cpu", "naive"): 1024**3, ("cuda", "naive"): 4096**3}
QUICK_LIMITS = {("cpu", "naive"): 512**3, ("cuda", "naive"): 2048**3}


def main() -> int:
    """Measure what the command line asks for, and return the exit status."""
    args = _arguments()
    device = torch.device(args.device)
    # The baseline must do the same arithmetic as we do: FP32, not TF32.
    torch.set_float32_matmul_precision("highest")
    ladder = _chosen(kernels(device), args.kernels, device)

    run = Run(
        "cuda-matmul-f32", directory=Path(__file__).parent, version=cuda_matmul_f32.__version__
    )
    limits = QUICK_LIMITS if args.quick else LIMITS
    for size in args.sizes or (QUICK if args.quick else FULL)[device.type]:
        # torch first: rows then stand in the order of the climb.
        implementations = [Implementation("torch.matmul", torch.matmul, ours=False)]
        for kernel in ladder:
            limit = limits.get((device.type, kernel.name))
            implementations.append(_implementation(kernel, size, limit))
        run.measure(
            _case(size), implementations, device=device, budget_s=0.3 if args.quick else 1.0
        )
    run.finish(out=args.out)
    return run.exit_code


def _implementation(kernel: Kernel, size: Size, limit: int | None) -> Implementation:
    m, n, k = size
    skip = ""
    if limit is not None and m * n * k > limit:
        skip = f"{m * n * k:.1e} multiply-adds: not asked of {kernel.name} above {limit:.1e}"
    function: Callable[[Tensor, Tensor], Tensor] = partial(matmul, kernel=kernel.name)
    return Implementation(f"{kernel.number:02d} {kernel.name}", function, skip=skip)


def _case(size: Size) -> Case:
    m, n, k = size

    def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        draw = partial(torch.randn, generator=generator, device=generator.device)
        return draw(m, k), draw(k, n)

    return Case(
        name=f"{m}x{n}x{k}",
        inputs=inputs,
        reference=torch.matmul,
        # Random rounding of K additions grows like sqrt(K) units of 2^-24; TF32 is far above.
        tolerance=2.0 * k**0.5 * 2.0**-24,
        baseline="torch.matmul",
        flops=2.0 * m * n * k,
        bytes=4.0 * (m * k + k * n + m * n),
        params={"M": m, "N": n, "K": k, "dtype": "float32"},
    )


def _chosen(
    ladder: tuple[Kernel, ...], names: list[str] | None, device: torch.device
) -> list[Kernel]:
    if not ladder:
        sys.exit(f"no {device.type} kernels to measure: {build_info.missing}")
    known = [kernel.name for kernel in ladder]
    for name in names or []:
        if name not in known:
            sys.exit(f"no kernel {name!r} for {device.type}: there are {', '.join(known)}")
    return [kernel for kernel in ladder if not names or kernel.name in names]


def _size(text: str) -> Size:
    try:
        numbers = [int(x) for x in text.split("x")]
        m, n, k = numbers * 3 if len(numbers) == 1 else numbers
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give N, or MxNxK as in 64x4096x512") from None
    if min(m, n, k) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: each size must be at least 1")
    return m, n, k


def _arguments() -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        usage=summary, description=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = "cuda" if torch.cuda.is_available() and kernels("cuda") else "cpu"
    parser.add_argument("--quick", action="store_true", help="small sizes, about half a minute")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="only these rungs")
    parser.add_argument("--sizes", nargs="+", type=_size, metavar="SIZE", help="N or MxNxK")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the record goes (results/)")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA GPU here")
    return args


if __name__ == "__main__":
    sys.exit(main())
