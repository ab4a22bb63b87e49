"""python benchmark.py [--quick | --tune] [--device DEVICE] [--kernels NAME ...] [--sizes SIZE ...]

Climb the ladder: time each kernel and its peers on the same FP32 products, each checked against
float64 before and after. Sizes are M x N x K; one number is a square. Runs the CUDA ladder where
there is a GPU, else the CPU's.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import cuda_matmul_f32
import torch
from cuda_matmul_f32 import build_info, ffma_ceiling, kernels, matmul
from torch import Tensor

if importlib.util.find_spec("infra_bench") is None:
    # Not installed: use the one in the checkout that this file lies in.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
try:
    from infra_bench import Case, CaseRecord, Implementation, Row, Run
    from infra_bench.load import load
    from infra_bench.markdown import long_table
    from infra_bench.selection import choose
except ModuleNotFoundError:
    sys.exit("benchmark.py needs its harness: use the whole checkout, or pip install infra-bench")

Size = tuple[int, int, int]
TORCH, NAIVE, AUTO = "torch.matmul", "01 naive", "auto"


def squares(*sides: int) -> list[Size]:
    """Return N x N x N for each N."""
    return [(n, n, n) for n in sides]


# Less work than this takes well under a millisecond on a large GPU, so launching counts: timed in a
# CUDA graph, and small squares once more call by call.
GRAPH_FLOPS = 4e10
SMALL = squares(256, 512, 1024)
LARGE = squares(2048, 4096, 6144, 8192, 16384)
RAGGED = [
    *squares(1000, 2304, 8191),
    (4095, 4097, 1023),
    (32768, 256, 1024),
    (4096, 4096, 64),
    (64, 4096, 4096),
    (16, 11008, 4096),
    (1, 4096, 4096),
    (127, 129, 8191),
    (128, 128, 16384),
]
FULL: dict[str, list[Size]] = {
    "cpu": [*squares(256, 512, 1024, 2048), (1023, 1025, 511), (127, 129, 8191), (1, 4096, 4096)],
    "cuda": [*SMALL, *LARGE, *RAGGED],
}
QUICK: dict[str, list[Size]] = {
    "cpu": squares(256, 512, 1024),
    "cuda": [*squares(512, 1024, 2048, 1000), (16, 11008, 4096), (127, 129, 8191)],
}
BUDGET_S = {"cpu": 1.0, "cuda": 0.3}  # seconds of samples for each kernel and size
LONGEST_CALL_S = {"cpu": 4.0, "cuda": 0.5}  # what no kernel is asked for, by its best rate


def main() -> int:
    """Measure what the command line asks for, and return the exit status."""
    args = _arguments()
    device = torch.device(args.device)
    # The baseline must do the same arithmetic as we do: FP32, not TF32.
    torch.set_float32_matmul_precision("highest")
    if args.tune:
        from tune import tune

        print(f"wrote {tune()}: the next import compiles it")
        return 0
    run = Run(
        "cuda-matmul-f32", directory=Path(__file__).parent, version=cuda_matmul_f32.__version__
    )
    climb = Climb(
        run,
        device,
        rungs=_rungs(device, args.kernels),
        peers=_peers(device, args.peers, args.quick),
        share=0.2 if args.quick else 1.0,
    )
    for size in args.sizes or (QUICK if args.quick else FULL)[device.type]:
        climb.measure(size)
    if device.type == "cuda" and not args.sizes:
        climb.compare_with_torch()
    path = run.finish(out=args.out)
    climb.print_ladder(path)
    return run.exit_code


@dataclass
class Climb:
    """One run over sizes: who takes part, and what the machine can reach at best.

    share: of the usual budget, and of the longest call asked for.
    """

    run: Run
    device: torch.device
    rungs: dict[str, str]  # the name in tables -> matmul's kernel=
    peers: dict[str, Callable[[Tensor, Tensor], Tensor]]
    share: float
    fastest: dict[str, float] = field(default_factory=dict)  # FLOP/s that each was seen to reach

    def __post_init__(self) -> None:
        self.peaks = _peaks(self.run) if self.device.type == "cuda" else (0.0, 0.0)

    def measure(self, size: Size) -> None:
        """Time every rung and peer on one size; a small square on a GPU again call by call."""
        graph = self.device.type == "cuda" and 2.0 * math.prod(size) < GRAPH_FLOPS
        found = self._measure(size, graph=graph)
        for row in found.rows:
            self.fastest[row.implementation] = max(
                row.rate or 0.0, self.fastest.get(row.implementation, 0.0)
            )
        if graph and size in SMALL and AUTO in self.rungs:
            self._measure(size, eager=True, only=(TORCH, AUTO))

    def _measure(
        self, size: Size, graph: bool = False, eager: bool = False, only: tuple[str, ...] = ()
    ) -> CaseRecord:
        # Peers first: rows then stand in the order of the climb.
        everyone = {name: (function, False) for name, function in self.peers.items()}
        for name, kernel in self.rungs.items():
            everyone[name] = (partial(matmul, kernel=kernel), True)
        implementations = [
            Implementation(name, function, ours=ours, skip=self._too_slow(name, size))
            for name, (function, ours) in everyone.items()
            if not only or name in only
        ]
        return self.run.measure(
            _case(size, implementations[0].name, self.peaks, ", call by call" if eager else ""),
            implementations,
            device=self.device,
            budget_s=self.share * BUDGET_S[self.device.type],
            graph=graph,
            eager=eager,
        )

    def _too_slow(self, name: str, size: Size) -> str:
        """Say why an implementation is not asked for a size; nothing where it is."""
        rate = self.fastest.get(name, 0.0)
        seconds = 2.0 * math.prod(size) / rate if rate else 0.0
        limit = self.share * LONGEST_CALL_S[self.device.type]
        if seconds <= limit:
            return ""
        return f"at its best rate a call would take more than {limit:g} s"

    def compare_with_torch(self) -> None:
        """Add the mean and the least of auto's speed against torch over groups of sizes."""
        groups = {
            "squares to 1024, in a graph": [_name(size) for size in SMALL],
            "squares to 1024, call by call": [f"{_name(size)}, call by call" for size in SMALL],
            "squares from 2048": [_name(size) for size in LARGE],
            "ragged and skinny": [_name(size) for size in RAGGED],
        }
        for group, names in groups.items():
            ratios = [
                row.ratio
                for case in self.run.cases
                if case.name in names and case.baseline == TORCH
                for row in case.rows
                if row.implementation == AUTO and row.ratio
            ]
            if ratios:
                speeds = {
                    "geometric mean of speeds": statistics.geometric_mean(ratios),
                    "least speed": min(ratios),
                }
                self.run.add(
                    group,
                    [
                        row
                        for metric, speed in speeds.items()
                        for row in (
                            Row(TORCH, metric, "", [1.0], ours=False),
                            Row(AUTO, metric, "", [speed]),
                        )
                    ],
                    baseline=TORCH,
                    params={"sizes": len(ratios)},
                )

    def print_ladder(self, path: Path) -> None:
        """Print the climb at the largest square that most rungs took part in."""
        record = load(path)
        cases = [c for c in record.cases if len({c.params.get(x) for x in "MNK"}) == 1 and c.flops]
        if not cases:
            return
        case = max(cases, key=lambda c: (sum(row.status == "ok" for row in c.rows), c.flops))
        columns = ["rate", "ratio", "error"]
        columns[2:2] = ["share"] if case.peak else []
        columns[2:2] = [f"vs:{NAIVE}"] if NAIVE in self.rungs else []
        self.run.console.print(f"\nThe climb at {case.name}:", highlight=False)
        table = long_table(choose(record, cases=case.name), columns)
        self.run.console.print(table, highlight=False, markup=False)


def _case(size: Size, baseline: str, peaks: tuple[float, float], suffix: str = "") -> Case:
    m, n, k = size

    def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        draw = partial(torch.randn, generator=generator, device=generator.device)
        return draw(m, k), draw(k, n)

    return Case(
        name=_name(size) + suffix,
        inputs=inputs,
        reference=torch.matmul,
        # Random rounding of K additions grows like sqrt(K) units of 2^-24; TF32 is far above.
        tolerance=2.0 * k**0.5 * 2.0**-24,
        baseline=baseline,
        flops=2.0 * m * n * k,
        bytes=4.0 * (m * k + k * n + m * n),
        peak_flops=peaks[0],
        peak_bytes=peaks[1],
        params={"M": m, "N": n, "K": k, "dtype": "float32"},
    )


def _name(size: Size) -> str:
    return "x".join(map(str, size))


def _peaks(run: Run) -> tuple[float, float]:
    """Measure what this GPU reaches in FP32 arithmetic alone, and in copying memory."""
    flops = [ffma_ceiling() for _ in range(5)]
    bandwidth = [_copy_bandwidth() for _ in range(5)]
    run.add(
        "what this GPU reaches",
        [
            Row("FFMA on registers", "FP32 arithmetic", "TFLOP/s", flops),
            Row("copy of 1 GiB", "memory traffic", "TB/s", bandwidth),
        ],
        baseline="FFMA on registers",
    )
    return statistics.median(flops) * 1e12, statistics.median(bandwidth) * 1e12


def _copy_bandwidth() -> float:
    """Return TB/s, read and written, of a device-to-device copy."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").fill_(1)
    target = torch.empty_like(source)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    target.copy_(source)
    start.record()
    for _ in range(4):
        target.copy_(source)
    end.record()
    end.synchronize()
    return 4 * 2 * source.numel() / (start.elapsed_time(end) * 1e-3) * 1e-12


def _rungs(device: torch.device, chosen: list[str] | None) -> dict[str, str]:
    """Return the rungs to measure; on a GPU also the choice that matmul makes by itself."""
    ladder = {f"{kernel.number:02d} {kernel.name}": kernel.name for kernel in kernels(device)}
    if not ladder:
        sys.exit(f"no {device.type} kernels to measure: {build_info.missing}")
    if device.type == "cuda":
        ladder[AUTO] = "auto"
    for name in chosen or []:
        if name not in ladder.values():
            known = ", ".join(ladder.values())
            sys.exit(f"no kernel {name!r} for {device.type}: there are {known}")
    return {name: kernel for name, kernel in ladder.items() if not chosen or kernel in chosen}


def _peers(
    device: torch.device, chosen: list[str] | None, quick: bool
) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return the peers to measure: torch, and Triton where there are a GPU and a Triton.

    A quick run leaves Triton, which compiles for each kind of size, to those who ask for it.
    """
    peers: dict[str, Callable[[Tensor, Tensor], Tensor]] = {TORCH: torch.matmul}
    if chosen is None and quick:
        return peers
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from triton_peer import triton_matmul

        peers["triton"] = triton_matmul
    for name in chosen or []:
        if name not in [peer.split(".")[0] for peer in peers]:
            sys.exit(f"no peer {name!r} for {device.type} here: there are {', '.join(peers)}")
    return {
        name: peer for name, peer in peers.items() if chosen is None or name.split(".")[0] in chosen
    }


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
    parser.add_argument("--quick", action="store_true", help="fewer sizes, about half a minute")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default)
    parser.add_argument("--kernels", nargs="+", metavar="NAME", help="only these rungs")
    parser.add_argument("--sizes", nargs="+", type=_size, metavar="SIZE", help="N or MxNxK")
    parser.add_argument(
        "--peers", nargs="*", metavar="NAME", help="only these of: torch, triton; or none"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the record goes (results/)")
    parser.add_argument(
        "--tune", action="store_true", help="measure what kernel='auto' chooses by, and write it"
    )
    args = parser.parse_args()
    if args.tune and args.device != "cuda":
        parser.error("--tune: there is nothing to choose without a CUDA GPU")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA GPU here")
    return args


if __name__ == "__main__":
    sys.exit(main())
