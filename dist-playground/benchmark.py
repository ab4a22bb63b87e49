"""python benchmark.py

Trains the same GPT alone, with DDP, with FSDP and with tensor parallelism, each through its script
and torchrun, and compares tokens a second, memory a rank, and losses with one process.

With two GPUs it runs on them over NCCL, else on CPUs over gloo. Weak scaling: each rank of DDP and
FSDP gets as many rows as the single process has, so that N ranks train on a batch N times as
large; tensor parallel ranks share the single process's batch. "no communication" is the ideal: as
many single processes at the same time that never talk, so that what they lose by sharing the
machine is not blamed on communication. Losses are compared with one process on the same global
batch, in the runs that are timed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
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
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: run `pip install ./dist-playground` first") from None

BASELINE = "single process"
VERIFIED_STEPS = 6  # of which losses are compared: later ones drift apart, as rounding is amplified
TIMEOUT_S = 300
# Largest relative difference of a loss; tests/test_equals_one_process.py says where these are from.
TOLERANCE = {"float32": 1e-5, "bfloat16": 5e-3}


@dataclass(frozen=True)
class Workload:
    """What one rank trains on, for how long, and how often each run is repeated in turn."""

    device: str
    ranks: int
    model: str
    rows: int
    sequence_length: int
    dtype: str
    warm_up: int  # steps at the start of each run that are not counted
    steps: int
    rounds: int

    @property
    def name(self) -> str:
        """The case's name in the record."""
        backend = "nccl" if self.device == "cuda" else "gloo"
        size = f"{self.rows}x{self.sequence_length}"
        return f"{self.model}, {size} a rank, {self.dtype}, {self.ranks} ranks on {backend}"


@dataclass(frozen=True)
class Method:
    """One row of the table: a script, its number of ranks, and its global batch in rows."""

    name: str
    script: str
    ranks: int
    batch: int
    verified: bool = True
    steps: int = sys.maxsize  # at most so many
    rounds: int = sys.maxsize


def methods(workload: Workload) -> list[Method]:
    """What is compared; `batch` makes each rank of ddp and fsdp as busy as the single process."""
    ranks, rows = workload.ranks, workload.rows
    return [
        Method(BASELINE, "single.py", 1, rows, verified=False),
        Method(f"no communication, x{ranks}", "single.py", ranks, rows * ranks, verified=False),
        Method("ddp", "ddp.py", ranks, rows * ranks),
        Method("fsdp", "fsdp.py", ranks, rows * ranks),
        Method("tensor parallel", "tensor_parallel.py", ranks, rows),
    ]


class RunFailedError(Exception):
    """A training run that ended with an error, or did not end; its message says why."""


def train(workload: Workload, method: Method, steps: int) -> dict[str, Any]:
    """Run one script to its end; returns the record that its rank 0 wrote."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.json"
        # One rank also goes through torchrun, so that all start the same way.
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={method.ranks}", str(PACKAGE / method.script)]
        command += ["--device", workload.device, "--model", workload.model]
        command += ["--batch-size", str(method.batch), "--dtype", workload.dtype]
        command += ["--sequence-length", str(workload.sequence_length), "--steps", str(steps)]
        command += ["--log-every", str(steps), "--json", str(file)]
        # One thread a rank: two ranks on two cores against one rank on one core.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            errors = process.communicate(timeout=TIMEOUT_S)[1]
        except subprocess.TimeoutExpired:
            raise RunFailedError(f"did not end within {TIMEOUT_S} s") from None
        finally:
            end(process)
        if process.returncode != 0 or not file.exists():
            raise RunFailedError(reason(errors) or f"exit code {process.returncode}")
        record: dict[str, Any] = json.loads(file.read_text())
        return record


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
    return (ours + raised + [""])[0]


def loss_difference(records: list[dict[str, Any]], reference: dict[str, Any]) -> float:
    """Largest relative difference of the first steps' losses, over all rounds; NaN if one is."""
    one = torch.tensor(reference["losses"][:VERIFIED_STEPS], dtype=torch.float64)
    ours = [record["losses"][:VERIFIED_STEPS] for record in records]
    # torch's max, not Python's: max(0.0, nan) is 0.0.
    return ((torch.tensor(ours, dtype=torch.float64) - one).abs() / one).max().item()


def rows_of(
    workload: Workload, method: Method, records: list[dict[str, Any]], error: float | None
) -> list[infra_bench.Row]:
    """The metrics of one method, samples of all rounds one after another."""
    rates = [rate for r in records for rate in r["tokens_per_second"][workload.warm_up :]]
    unit, scale = ("GiB", 2**30) if workload.device == "cuda" else ("MiB", 2**20)

    def of_fullest_rank(metric: str, key: str) -> infra_bench.Row:
        # The fullest rank decides whether a model fits.
        samples = [max(rank[key] for rank in record["ranks"]) / scale for record in records]
        return infra_bench.Row(
            method.name, metric, unit, samples, ours=method.verified, better="lower"
        )

    tolerance = TOLERANCE[workload.dtype]
    wrong = error is not None and not error <= tolerance
    why = f"losses differ from one process by {error:.2g}, more than {tolerance:g}" if wrong else ""
    status = "refused" if wrong else "ok"
    return [
        infra_bench.Row(
            method.name,
            "tokens",
            "tok/s",
            rates,
            ours=method.verified,
            error=error,
            status=status,
            reason=why,
        ),
        of_fullest_rank("peak memory", "peak_bytes"),
        of_fullest_rank("model state", "state_bytes"),
    ]


def run_in_turns(
    workload: Workload, everything: list[Method]
) -> tuple[dict[Method, list[dict[str, Any]]], dict[Method, str]]:
    """Run A B C, A B C ...: each method's records by round, and why a method failed."""
    records: dict[Method, list[dict[str, Any]]] = {method: [] for method in everything}
    failed: dict[Method, str] = {}
    steps = workload.warm_up + workload.steps
    for turn in range(workload.rounds):
        for method in everything:
            if method in failed or turn >= method.rounds:
                continue
            wanted = min(steps, method.steps)
            about = f"{method.script}, {method.ranks} rank(s), {wanted} steps"
            print(f"round {turn + 1}: {method.name} ({about})", flush=True)
            try:
                records[method].append(train(workload, method, wanted))
            except RunFailedError as error:
                failed[method] = str(error)
                print(f"{method.name} failed: {error}", flush=True)
    return records, failed


def compare(run: infra_bench.Run, workload: Workload) -> None:
    """Run every method and add its rows to the run."""
    compared = methods(workload)
    rows, both = workload.rows, workload.rows * workload.ranks
    large = Method(
        "reference for ddp and fsdp", "single.py", 1, both, steps=VERIFIED_STEPS, rounds=1
    )
    records, failed = run_in_turns(workload, [*compared, large])
    reference_of = {rows: compared[0], both: large}

    found: list[infra_bench.Row] = []
    for method in compared:
        reference = reference_of[method.batch] if method.verified else method
        why = failed.get(method, "")
        if not why and reference in failed:
            why = f"nothing to compare its losses with: {reference.name}: {failed[reference]}"
        if why:
            found.append(
                infra_bench.Row(method.name, "tokens", "tok/s", [], status="failed", reason=why)
            )
            continue
        error = None
        if method.verified:
            error = loss_difference(records[method], records[reference][0])
        found += rows_of(workload, method, records[method], error)
    run.add(
        workload.name,
        found,
        baseline=BASELINE,
        params={
            "model": workload.model,
            "ranks": workload.ranks,
            "rows a rank": workload.rows,
            "T": workload.sequence_length,
            "dtype": workload.dtype,
            "device": workload.device,
        },
    )


def workload_for_this_machine(quick: bool) -> Workload:
    """Two GPUs where there are two, else two CPU processes with a thread each."""
    gpus = torch.cuda.device_count()
    if gpus >= 2:
        steps, rounds = (10, 1) if quick else (30, 2)
        return Workload("cuda", 2, "small", 16, 1024, "bfloat16", 5, steps, rounds)
    print(f"{gpus} GPU(s) here, two are needed for NCCL: two CPU processes over gloo", flush=True)
    steps, rounds = (8, 1) if quick else (20, 3)
    return Workload("cpu", 2, "tiny", 8, 128, "float32", 2, steps, rounds)


def main() -> int:
    """Parse the options, run the comparison, write the record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="about a minute on two cores")
    parser.add_argument("--out", type=Path, help="folder for the record (default: results/)")
    arguments = parser.parse_args()
    workload = workload_for_this_machine(arguments.quick)
    run = infra_bench.Run(
        "dist-playground",
        directory=PACKAGE,
        version=dist_playground.__version__,
        device=workload.device,
    )
    compare(run, workload)
    run.finish(out=arguments.out)
    return run.exit_code


if __name__ == "__main__":
    sys.exit(main())
