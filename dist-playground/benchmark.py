"""python benchmark.py

Trains the same GPT in every kind of parallelism, this package's own (scratch) beside torch's, and
compares tokens a second, memory and losses; then times all-reduces.

With two GPUs it runs on them over NCCL, else on CPUs over gloo. Everything happens in one process
group, so all rows of a run have the same processes, GPUs and minutes. Weak scaling: with DDP and
FSDP each rank has as many rows as one process alone; with tensor, pipeline and context parallelism
all ranks share the rows of one. "no communication" is the ideal: as many processes that never
talk. Losses are compared with one process on the same global batch, in the runs that are timed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
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
    from dist_playground.bandwidth import bus_bandwidth, measure
    from dist_playground.ending import run_and_exit
    from dist_playground.grid import Grid
    from dist_playground.memory import predicted_peak
    from dist_playground.model import MODELS
    from dist_playground.process_group import process_group
    from dist_playground.settings import parse_settings
    from dist_playground.trace import Timeline, draw
    from dist_playground.trial import Trial, run_trial
    from dist_playground.world import read_world
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: run `pip install ./dist-playground` first") from None

IDEAL = "no communication"
VERIFIED_STEPS = 4  # of which losses are compared: later ones drift apart, as rounding is amplified
# Largest relative difference of a loss; tests/test_equals_one_process.py says where these are from.
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-3}
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, by the data sheets


@dataclass(frozen=True)
class Workload:
    """What one process alone would train on, and for how long."""

    model: str
    rows: int
    sequence_length: int
    dtype: str
    warm_up: int
    timed: int
    rounds: int
    kinds: tuple[str, ...]
    compiled: bool = False
    graphs: bool = False

    def name(self, ranks: int) -> str:
        """The case's name in the record."""
        return f"{self.model} {self.rows}x{self.sequence_length}, {self.dtype}, {ranks} ranks"


@dataclass(frozen=True)
class Method:
    """One row: a kind of parallelism and its options; `peer` is what its speed is held to."""

    name: str
    kind: str
    options: tuple[str, ...]
    ours: bool = True


# The first one of each kind is the baseline of its case.
METHODS = {
    "ddp": (
        Method("torch ddp", "ddp", ("--impl", "torch"), ours=False),
        Method("ddp", "ddp", ()),
        Method("zero1", "ddp", ("--zero1",)),
    ),
    "fsdp": (
        Method("torch fsdp", "fsdp", ("--impl", "torch"), ours=False),
        Method("torch fsdp, no reshard", "fsdp", ("--impl", "torch", "--no-reshard"), ours=False),
        Method("fsdp", "fsdp", ()),
        Method("fsdp, no reshard", "fsdp", ("--no-reshard",)),
    ),
    "tensor": (
        Method("torch tensor", "tensor_parallel", ("--impl", "torch"), ours=False),
        Method("tensor", "tensor_parallel", ()),
    ),
    "pipeline": (
        Method("pipeline afab", "pipeline", ("--accumulate", "4", "--schedule", "afab")),
        Method("pipeline 1f1b", "pipeline", ("--accumulate", "4")),
    ),
    "context": (Method("context", "context_parallel", ()),),
}
SPLITS_BATCH = ("ddp", "fsdp")


def trial(workload: Workload, method: Method, rows: int, **more: Any) -> dict[str, Any]:
    """What the ranks are told to run."""
    options = ["--model", workload.model, "--batch-size", str(rows), "--dtype", workload.dtype]
    options += ["--sequence-length", str(workload.sequence_length), "--learning-rate", "1e-4"]
    return {
        "name": method.name,
        "kind": method.kind,
        "options": [*options, *method.options],
        "warm_up": workload.warm_up,
        "timed": workload.timed,
    } | more


def trials(workload: Workload, ranks: int) -> list[dict[str, Any]]:
    """References first, then every method in turns; compiled ones once, last."""
    alone = Method(IDEAL, "single", ())
    found = []
    for kind in SPLITS_BATCH:
        if kind in workload.kinds:
            # One process that rounds weights where this kind does: FSDP also rounds the norms'
            # and the embedding's, to what it sends.
            script = "fsdp" if kind == "fsdp" else "single"
            whole = Method(f"reference for {kind}", script, ("--accumulate", str(ranks)))
            steps = {"warm_up": 1, "timed": VERIFIED_STEPS - 1}
            found.append(trial(workload, whole, workload.rows * ranks, alone=True, **steps))
    methods = [m for kind in workload.kinds for m in METHODS[kind]]
    for _ in range(workload.rounds):
        found.append(trial(workload, alone, workload.rows, alone=True))
        found += [trial(workload, m, rows_of(workload, m, ranks)) for m in methods]
    if workload.graphs:
        for m in methods:
            if m.ours and "no reshard" not in m.name:
                graphed = Method(f"{m.name}, graph", m.kind, (*m.options, "--graph"))
                each = trial(workload, graphed, rows_of(workload, m, ranks))
                found.append(each | {"warm_up": workload.warm_up + 3})
    if workload.compiled:
        for m in (alone, *methods):
            if "no reshard" in m.name or m.kind in ("pipeline", "context_parallel"):
                continue
            compiled = Method(f"{m.name}, compiled", m.kind, (*m.options, "--compile"), m.ours)
            rows = workload.rows if m is alone else rows_of(workload, m, ranks)
            found.append(trial(workload, compiled, rows, alone=m is alone))
    return found


def rows_of(workload: Workload, method: Method, ranks: int) -> int:
    """The global batch that keeps each rank as busy as one process alone, or shares its rows."""
    return workload.rows * (ranks if method.kind in SPLITS_BATCH else 1)


def work(specification: Path) -> None:
    """What each rank does: run the trials; rank 0 writes what was measured after each one."""
    told = json.loads(specification.read_text())
    world = read_world(told["device"])
    with process_group(world, timeout_s=240):
        out = Path(told["out"])
        for number, each in enumerate(told["trials"]):
            settings = parse_settings("", each["options"])
            alone = each.get("alone", False)
            what = Trial(
                each["name"], each["kind"], settings, each["warm_up"], each["timed"], alone
            )
            found = run_trial(world, what)
            if world.rank == 0:
                (out / f"{number:03}.json").write_text(json.dumps(found))
                rate = found["tokens"] / sorted(found["seconds"])[len(found["seconds"]) // 2]
                print(
                    f"{settings.model} {each['name']}: {rate:,.0f} tok/s, "
                    f"{found['peak_bytes'] / 2**30:.2f} GiB, exposed {found['exposed_ms']:.1f} ms",
                    flush=True,
                )
        axis = Grid({"data": world.size}, world.rank).data
        timings = measure(axis, world.device, told["all_reduce_bytes"])
        if world.rank == 0:
            values = [(t.name, t.bytes, t.seconds, t.error) for t in timings]
            (out / "all_reduce.json").write_text(json.dumps(values))


def launch(told: dict[str, Any], ranks: int, folder: Path, timeout_s: float) -> str:
    """Run the ranks to their end; gives why they failed, or nothing."""
    told["out"] = str(folder)
    file = folder / "told.json"
    file.write_text(json.dumps(told))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", str(PACKAGE / "benchmark.py"), "--worker", str(file)]
    # One thread a rank: two ranks on two cores against one rank on one core.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        errors = process.communicate(timeout=timeout_s)[1]
    except subprocess.TimeoutExpired:
        return f"the ranks did not end within {timeout_s:.0f} s"
    finally:
        end(process)
    return "" if process.returncode == 0 else reason(errors)


def end(process: "subprocess.Popen[str]") -> None:
    """Leave no rank behind, also on Ctrl-C: torchrun ends its ranks when it is asked to end."""
    if process.poll() is None:
        process.terminate()
        try:
            process.communicate(timeout=35)  # it gives them 30 s
        except subprocess.TimeoutExpired:
            process.kill()


def reason(errors: str) -> str:
    """The line that says what went wrong: ours if there is one, else the first exception's."""
    lines = [line.strip() for line in errors.splitlines()]
    ours = [line for line in lines if "error: " in line and line.startswith("[rank")]
    raised = [line for line in lines if "Error: " in line]
    return (ours + raised + ["the ranks ended with an error"])[0]


def loss_difference(losses: list[list[float]], reference: list[float]) -> float:
    """Largest relative difference of the first steps' losses, over all rounds; NaN if one is."""
    one = torch.tensor(reference[:VERIFIED_STEPS], dtype=torch.float64)
    ours = torch.tensor([each[:VERIFIED_STEPS] for each in losses], dtype=torch.float64)
    # torch's max, not Python's: max(0.0, nan) is 0.0.
    return ((ours - one).abs() / one).max().item()


def rows_for(
    name: str,
    found: list[dict[str, Any]],
    ours: bool,
    error: float | None,
    dtype: str,
    peak: float,
    predicted: float = 0.0,
) -> list[infra_bench.Row]:
    """The metrics of one method, samples of all rounds one after another."""
    rates = [each["tokens"] / seconds for each in found for seconds in each["seconds"]]
    wrong = error is not None and not error <= TOLERANCE[dtype]
    why = f"losses differ from one process by {error}, more than {TOLERANCE[dtype]:g}"
    rows = [
        infra_bench.Row(
            name,
            "tokens",
            "tok/s",
            rates,
            ours=ours,
            error=error,
            status="refused" if wrong else "ok",
            reason=why if wrong else "",
        )
    ]

    def add(metric: str, unit: str, values: list[float], better: str = "lower") -> None:
        rows.append(infra_bench.Row(name, metric, unit, values, ours=ours, better=better))

    unit, scale = ("GiB", 2**30) if peak else ("MiB", 2**20)
    # The fullest rank decides whether a model fits.
    add("model state", unit, [each["state_bytes"] / scale for each in found])
    if peak:  # the peak of a process on the CPU is that of all trials before too
        add("peak memory", unit, [each["peak_bytes"] / scale for each in found])
    if peak and predicted:
        add("predicted memory", unit, [predicted / scale])
    add("exposed", "ms", [each["exposed_ms"] for each in found])
    if peak:
        flops = found[0]["flops_a_token"]
        ranks = torch.cuda.device_count()
        add("MFU", "%", [100 * rate * flops / (peak * min(ranks, 2)) for rate in rates], "higher")
    return rows


def add_training(
    run: infra_bench.Run, workload: Workload, ranks: int, found: list[dict[str, Any]], peak: float
) -> dict[str, Timeline]:
    """A case for each kind of parallelism; gives the timelines of one step."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for each in found:
        by_name.setdefault(each["name"], []).append(each)
    timelines = {}
    for kind in workload.kinds:
        rows: list[infra_bench.Row] = []
        for ending in ("", ", graph", ", compiled"):
            ideal = by_name.get(IDEAL + ending)
            if ideal:
                rows += rows_for(IDEAL + ending, ideal, False, None, workload.dtype, peak)
            for method in METHODS[kind]:
                results = by_name.get(method.name + ending)
                reference = by_name.get(f"reference for {kind}" if kind in SPLITS_BATCH else IDEAL)
                if not results or not reference:
                    continue
                error = loss_difference([r["losses"] for r in results], reference[0]["losses"])
                name = method.name + ending
                expected = 0.0
                if method.ours and not ending and workload.dtype == "bfloat16":
                    expected = predicted_peak(
                        MODELS[workload.model],
                        "zero1" if "--zero1" in method.options else method.kind,
                        ranks,
                        workload.rows * workload.sequence_length,
                        "--no-reshard" not in method.options,
                    )
                rows += rows_for(name, results, method.ours, error, workload.dtype, peak, expected)
                timelines[name] = Timeline(**results[0]["timeline"])
        if any(row.implementation == METHODS[kind][0].name for row in rows):
            run.add(
                f"{kind}, {workload.name(ranks)}",
                rows,
                baseline=METHODS[kind][0].name,
                params={
                    "kind": kind,
                    "model": workload.model,
                    "rows": workload.rows,
                    "T": workload.sequence_length,
                },
            )
    return timelines


def add_all_reduces(run: infra_bench.Run, values: list[Any], ranks: int) -> None:
    """A case a size: latency of each way, and the bandwidth that it means for a link."""
    for size in sorted({value[1] for value in values}):
        rows = []
        for name, bytes_, seconds, error in values:
            if bytes_ != size:
                continue
            micro = [s * 1e6 for s in seconds]
            bus = [bus_bandwidth(size, s, ranks) / 1e9 for s in seconds]
            ours = name not in ("nccl", "gloo")
            better = {"ours": ours, "error": error}
            rows.append(infra_bench.Row(name, "latency", "us", micro, better="lower", **better))
            rows.append(infra_bench.Row(name, "bus", "GB/s", bus, ours=ours))
        run.add(f"all-reduce {size} B, {ranks} ranks", rows, baseline=values[0][0])


def workloads(gpu: bool, quick: bool) -> list[Workload]:
    """What is trained on this machine."""
    if gpu:
        kinds = ("ddp", "fsdp", "tensor")
        bf16 = "bfloat16"
        steps, rounds = (5, 1) if quick else (10, 2)
        small = Workload("small", 16, 1024, bf16, 3, steps, rounds, kinds, graphs=True)
        if quick:
            return [small]
        return [
            Workload("large", 4, 2048, bf16, 3, 8, 2, kinds, compiled=True, graphs=True),
            Workload("large", 1, 1024, bf16, 3, 10, 2, kinds, graphs=True),
            small,
        ]
    kinds = tuple(METHODS)
    return [Workload("tiny", 8, 128, "float32", 2, 3 if quick else 15, 1 if quick else 3, kinds)]


def main() -> int:
    """Parse the options, run the comparison, write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="about a minute on two cores")
    parser.add_argument("--out", type=Path, help="folder for the record (default: results/)")
    parser.add_argument("--only", default="", help="workloads, as in large4,large1,small")
    parser.add_argument("--kinds", default="", help="of parallelism, as in ddp,fsdp,tensor")
    parser.add_argument("--eager", action="store_true", help="leave out what torch.compile made")
    parser.add_argument("--rounds", type=int, help="how often everything takes its turn")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for all of it")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        run_and_exit(lambda: work(arguments.worker))
    ranks, gpu = 2, torch.cuda.device_count() >= 2
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
            compiled=w.compiled and not arguments.eager,
            kinds=tuple(k for k in w.kinds if k in (arguments.kinds or k).split(",")),
        )
        for w in workloads(gpu, arguments.quick)
        if not arguments.only or f"{w.model}{w.rows}" in arguments.only.split(",")
    ]
    every = [trials(workload, ranks) for workload in chosen]
    told = {
        "device": "cuda" if gpu else "cpu",
        "trials": [each for part in every for each in part],
        "all_reduce_bytes": [1024 * 4**k for k in range(11 if gpu and not arguments.quick else 6)],
    }
    run = infra_bench.Run(
        "dist-playground",
        directory=PACKAGE,
        version=dist_playground.__version__,
        device="cuda" if gpu else "cpu",
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        failure = launch(told, ranks, folder, arguments.timeout)
        if failure:
            print(f"stopped early: {failure}", file=sys.stderr, flush=True)
        begin, pictures = 0, {}
        for workload, part in zip(chosen, every, strict=True):
            files = [folder / f"{begin + k:03}.json" for k in range(len(part))]
            begin += len(part)
            found = [json.loads(file.read_text()) for file in files if file.exists()]
            timelines = add_training(run, workload, ranks, found, peak)
            if timelines:
                pictures[f"{workload.model}{workload.rows}"] = draw(timelines)
        file = folder / "all_reduce.json"
        if file.exists():
            add_all_reduces(run, json.loads(file.read_text()), ranks)
    path = run.finish(out=arguments.out)
    for name, picture in pictures.items():
        Path(path).with_name(f"{Path(path).stem}_{name}.svg").write_text(picture)
    return 1 if failure else run.exit_code


if __name__ == "__main__":
    sys.exit(main())
