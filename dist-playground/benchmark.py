"""python benchmark.py

Trains the same GPT in every kind of parallelism, this package's own (scratch) beside torch's, and
compares tokens a second, memory and losses; then times all-reduces.

With two GPUs it runs on them over NCCL, else on CPUs over gloo. Everything happens in one process
group, so all rows of a run have the same processes, GPUs and minutes. What is compared, and with
what, is in methods.py. Losses are compared with one process on the same global batch, in the runs
that are timed.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
try:
    import infra_bench
except ModuleNotFoundError:  # not installed: use the one in the checkout that this file lies in
    sys.path.insert(0, str(PACKAGE.parent))
    try:
        import infra_bench
    except ModuleNotFoundError:
        sys.exit(
            "benchmark.py needs its harness: use the whole checkout, or pip install infra-bench"
        )
try:
    import dist_playground
    import torch
    from dist_playground.bandwidth import bus_bandwidth
    from dist_playground.memory import predicted_peak
    from dist_playground.methods import (
        IDEAL,
        METHODS,
        RANKS,
        VARIANTS,
        VERIFIED_STEPS,
        Method,
        Workload,
        reference_of,
        trials,
    )
    from dist_playground.model import MODELS
    from dist_playground.ranks import Orders, all_reduces_in, launch, trials_in
    from dist_playground.trace import Timeline, draw
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: run `pip install ./dist-playground` first") from None

# Largest relative difference of a loss; tests/test_equals_one_process.py says where these are from.
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-3}
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, by the data sheets

Found = list[dict[str, Any]]  # what trials measured


def loss_difference(losses: list[list[float]], reference: list[float]) -> float:
    """Largest relative difference of the first steps' losses, over all rounds; NaN if one is."""
    one = torch.tensor(reference[:VERIFIED_STEPS], dtype=torch.float64)
    ours = torch.tensor([each[:VERIFIED_STEPS] for each in losses], dtype=torch.float64)
    # torch's max, not Python's: max(0.0, nan) is 0.0.
    return ((ours - one).abs() / one).max().item()


def speed_row(method: Method, found: Found, dtype: str, error: float | None) -> infra_bench.Row:
    """Tokens a second, samples of all rounds one after another; refused if losses are wrong."""
    rates = [each["tokens"] / seconds for each in found for seconds in each["seconds"]]
    row = infra_bench.Row(method.name, "tokens", "tok/s", rates, ours=method.ours, error=error)
    if error is None or error <= TOLERANCE[dtype]:
        return row
    why = f"losses differ from one process by {error}, more than {TOLERANCE[dtype]:g}"
    return replace(row, status="refused", reason=why)


def other_rows(
    method: Method, found: Found, peak: float, predicted: float | None
) -> list[infra_bench.Row]:
    """Memory, of the fullest rank, which decides whether a model fits; communication; MFU."""
    rows: list[infra_bench.Row] = []

    def add(metric: str, unit: str, values: list[float], better: str = "lower") -> None:
        row = infra_bench.Row(method.name, metric, unit, values, ours=method.ours, better=better)
        rows.append(row)

    unit, scale = ("GiB", 2**30) if peak else ("MiB", 2**20)
    add("model state", unit, [each["state_bytes"] / scale for each in found])
    if peak:  # the peak of a process on the CPU is that of all trials before too
        add("peak memory", unit, [each["peak_bytes"] / scale for each in found])
    if peak and predicted:
        add("predicted memory", unit, [predicted / scale])
    add("exposed", "ms", [each["exposed_ms"] for each in found])
    if peak:
        flops = found[0]["flops_a_token"] / (peak * RANKS)
        rates = [each["tokens"] / seconds for each in found for seconds in each["seconds"]]
        add("MFU", "%", [100 * rate * flops for rate in rates], "higher")
    return rows


def predicted(workload: Workload, method: Method) -> float | None:
    """Bytes that the formula gives for a method of ours, in an eager step."""
    if not method.ours or workload.dtype != "bfloat16" or method.kind == "pipeline":
        return None
    kind = "zero1" if "--zero1" in method.options else method.kind
    reshard = "--no-reshard" not in method.options
    return predicted_peak(MODELS[workload.model], kind, RANKS, workload.tokens, reshard)


def add_training(
    run: infra_bench.Run, workload: Workload, found: Found, peak: float
) -> dict[str, Timeline]:
    """A case for each kind of parallelism; gives the timelines of one step."""
    timelines = {}
    for kind in workload.kinds:
        reference = [each for each in found if each["name"] == reference_of(kind).name]
        rows: list[infra_bench.Row] = []
        for variant in VARIANTS:
            for method in filter(None, (m.varied(variant) for m in (IDEAL, *METHODS[kind]))):
                mine = [each for each in found if each["name"] == method.name]
                if not mine or not reference:
                    continue
                error = None
                if method.kind != IDEAL.kind:
                    losses = [each["losses"] for each in mine]
                    error = loss_difference(losses, reference[0]["losses"])
                    if not variant:
                        timelines[method.name] = Timeline(**mine[0]["timeline"])
                rows.append(speed_row(method, mine, workload.dtype, error))
                formula = None if variant or error is None else predicted(workload, method)
                rows += other_rows(method, mine, peak, formula)
        baseline = METHODS[kind][0].name
        if any(row.implementation == baseline for row in rows):
            params = {"kind": kind, "model": workload.model, "rows": workload.rows}
            params["T"] = workload.sequence_length
            run.add(f"{kind}, {workload.name}", rows, baseline=baseline, params=params)
    return timelines


def add_all_reduces(run: infra_bench.Run, timings: Found) -> None:
    """A case a size: latency of each way, and the bandwidth that it means for a link."""
    for size in sorted({timing["bytes"] for timing in timings}):
        rows = []
        for timing in timings:
            if timing["bytes"] == size:
                name, seconds = timing["name"], timing["seconds"]
                ours = name.split(",")[0] in ("ring", "tree", "peer memory")
                row = infra_bench.Row(name, "latency", "us", [s * 1e6 for s in seconds], ours=ours)
                rows.append(replace(row, better="lower", error=timing["error"]))
                bus = [bus_bandwidth(size, s, RANKS) / 1e9 for s in seconds]
                rows.append(infra_bench.Row(name, "bus", "GB/s", bus, ours=ours))
        run.add(f"all-reduce {size} B, {RANKS} ranks", rows, baseline=timings[0]["name"])


def workloads(gpu: bool, quick: bool) -> list[Workload]:
    """What is trained on this machine."""
    if not gpu:
        timed, rounds = (3, 1) if quick else (15, 3)
        return [Workload("tiny", 8, 128, "float32", 2, timed, rounds, tuple(METHODS))]
    kinds = ("ddp", "fsdp", "tensor")
    if quick:
        return [Workload("small", 16, 1024, "bfloat16", 3, 5, 1, kinds)]
    return [
        Workload("small", 16, 1024, "bfloat16", 3, 10, 2, kinds),
        Workload("large", 1, 1024, "bfloat16", 3, 10, 2, kinds, ("", ", graph")),
        Workload("large", 4, 2048, "bfloat16", 3, 8, 2, kinds, tuple(VARIANTS)),
    ]


def main() -> int:
    """Parse the options, run the comparison, write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="about a minute on two cores")
    parser.add_argument("--out", type=Path, help="folder for the record (default: results/)")
    parser.add_argument("--only", default="", help="workloads, as in large4,large1,small16")
    parser.add_argument("--kinds", default="", help="of parallelism, as in ddp,fsdp,tensor")
    parser.add_argument("--eager", action="store_true", help="leave out graphs and torch.compile")
    parser.add_argument("--rounds", type=int, help="how often everything eager takes its turn")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for all of it")
    arguments = parser.parse_args()
    gpu = torch.cuda.device_count() >= RANKS
    peak = 0.0
    if gpu:
        name = torch.cuda.get_device_name(0)
        peak = next((value for key, value in PEAK_FLOPS.items() if key in name), 0.0)
    else:
        print("no two GPUs here, which NCCL needs: two CPU processes over gloo", flush=True)
    chosen = [
        replace(
            w,
            rounds=arguments.rounds or w.rounds,
            variants=("",) if arguments.eager else w.variants,
            kinds=tuple(k for k in w.kinds if k in (arguments.kinds or k).split(",")),
        )
        for w in workloads(gpu, arguments.quick)
        if not arguments.only or f"{w.model}{w.rows}" in arguments.only.split(",")
    ]
    every = [trials(workload) for workload in chosen]
    orders = Orders(
        "cuda" if gpu else "cpu",
        [each for part in every for each in part],
        [1024 * 4**k for k in range(11 if gpu and not arguments.quick else 6)],
    )
    run = infra_bench.Run(
        "dist-playground",
        directory=PACKAGE,
        version=dist_playground.__version__,
        device=orders.device,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        failure = launch(orders, RANKS, folder, arguments.timeout)
        if failure:
            print(f"stopped early: {failure}", file=sys.stderr, flush=True)
        begin, pictures = 0, {}
        for workload, part in zip(chosen, every, strict=True):
            found = trials_in(folder, range(begin, begin + len(part)))
            begin += len(part)
            timelines = add_training(run, workload, found, peak)
            if timelines:
                pictures[f"{workload.model}{workload.rows}"] = draw(timelines)
        add_all_reduces(run, all_reduces_in(folder))
    path = run.finish(out=arguments.out)
    for name, picture in pictures.items():
        Path(path).with_name(f"{Path(path).stem}_{name}.svg").write_text(picture)
    return 1 if failure else run.exit_code


if __name__ == "__main__":
    sys.exit(main())
