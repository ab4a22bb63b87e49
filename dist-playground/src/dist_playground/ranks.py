"""Starts ranks that run trials one after another in one process group.

So all rows of a comparison have the same processes, GPUs and minutes. What is to be run is pickled
into a folder, and rank 0 writes what each trial measured there as soon as it has ended: a run that
is stopped keeps what it has.
"""

import json
import os
import pickle
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dist_playground.bandwidth import measure
from dist_playground.ending import run_and_exit
from dist_playground.grid import Grid
from dist_playground.process_group import process_group
from dist_playground.trial import Trial, run_trial
from dist_playground.world import read_world

__all__ = ["Orders", "all_reduces_in", "launch", "trials_in"]


@dataclass(frozen=True)
class Orders:
    """What the ranks are told to do; sizes are bytes of all-reduces."""

    device: str
    trials: list[Trial]
    sizes: list[int]


def trials_in(folder: Path, numbers: range) -> list[dict[str, Any]]:
    """What these trials measured, as far as they were run."""
    files = [folder / f"{number:03}.json" for number in numbers]
    return [json.loads(file.read_text()) for file in files if file.exists()]


def all_reduces_in(folder: Path) -> list[dict[str, Any]]:
    """Timings of all-reduces, if they were run."""
    file = folder / "all_reduce.json"
    return json.loads(file.read_text()) if file.exists() else []


def launch(orders: Orders, ranks: int, folder: Path, timeout_s: float) -> str:
    """Run the ranks to their end; gives why they failed, or nothing."""
    (folder / "orders").write_bytes(pickle.dumps(orders))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "-m", "dist_playground.ranks", str(folder)]
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


def work(folder: Path) -> None:
    """What each rank does."""
    orders: Orders = pickle.loads((folder / "orders").read_bytes())
    world = read_world(orders.device)
    with process_group(world, timeout_s=240):
        if orders.sizes:
            axis = Grid({"data": world.size}, world.rank).data
            timings = measure(axis, world.device, orders.sizes)
            if world.rank == 0:
                values = [asdict(timing) for timing in timings]
                (folder / "all_reduce.json").write_text(json.dumps(values))
        for number, trial in enumerate(orders.trials):
            begin = time.perf_counter()
            found = run_trial(world, trial)
            if world.rank == 0:
                (folder / f"{number:03}.json").write_text(json.dumps(found))
                rate = found["tokens"] / statistics.median(found["seconds"])
                print(
                    f"{trial.settings.model} {trial.name}: {rate:,.0f} tok/s, "
                    f"{found['peak_bytes'] / 2**30:.2f} GiB, exposed {found['exposed_ms']:.1f} ms"
                    f" ({time.perf_counter() - begin:.0f} s)",
                    flush=True,
                )


if __name__ == "__main__":
    # The orders were pickled by the module's own name, under which this one is not known.
    from dist_playground.ranks import work as work_by_name

    run_and_exit(lambda: work_by_name(Path(sys.argv[1])))
