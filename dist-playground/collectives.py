"""torchrun --nproc-per-node 2 collectives.py

All-reduce three ways: the backend's own (NCCL or gloo), a ring and a tree made of send and receive;
on GPUs that reach each other's memory also a fourth. Checks the sums, then prints the times.
"""

import argparse
import statistics

try:
    from dist_playground.bandwidth import bus_bandwidth, measure
    from dist_playground.ending import run_and_exit
    from dist_playground.errors import UsageError
    from dist_playground.grid import Grid
    from dist_playground.process_group import process_group
    from dist_playground.world import read_world
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: run `pip install ./dist-playground` first") from None


def compare(device: str, largest: int) -> None:
    """Print a line for each size and way."""
    world = read_world(device)
    if world.size == 1:
        raise UsageError("one rank has nobody to sum with: use torchrun --nproc-per-node 2 or more")
    sizes = [1024 * 8**power for power in range(12) if 1024 * 8**power <= largest * 2**20]
    with process_group(world, timeout_s=60):
        axis = Grid({"data": world.size}, world.rank).data
        found = measure(axis, world.device, sizes)
        if world.rank == 0:
            print(f"all-reduce over {world.size} ranks, float32; bus: what each link must carry")
            print(f"{'bytes':>12}  {'way':22}{'time':>12}{'bus':>14}{'error':>10}")
            for timing in found:
                seconds = statistics.median(timing.seconds)
                bus = bus_bandwidth(timing.bytes, seconds, world.size)
                print(
                    f"{timing.bytes:12,}  {timing.name:22}{seconds * 1e6:9,.1f} us"
                    f"{bus / 1e9:9.3f} GB/s{timing.error:10.1e}",
                    flush=True,
                )
        wrong = [timing for timing in found if not timing.error <= 1e-6]
        if wrong:
            raise UsageError(
                f"{wrong[0].name} at {wrong[0].bytes} bytes is off by {wrong[0].error}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--largest", type=int, default=4, help="MiB of the largest tensor")
    arguments = parser.parse_args()
    run_and_exit(lambda: compare(arguments.device, arguments.largest))
