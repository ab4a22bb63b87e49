"""torchrun --nproc-per-node 2 hello_rank.py

The smallest distributed program: every process says who it is and where, then all of them add up
one number each. If this runs, the ranks can reach each other.
"""

import argparse
import os
import socket

try:
    from dist_playground.ending import run_and_exit
    from dist_playground.errors import UsageError
    from dist_playground.process_group import in_rank_order, process_group
    from dist_playground.report import device_name
    from dist_playground.world import read_world
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: run `pip install ./dist-playground` first") from None

import torch
import torch.distributed as dist


def hello(device: str) -> None:
    """Print each rank's line, then check that the sum over the ranks is right."""
    world = read_world(device)
    with process_group(world, timeout_s=30):
        for _ in in_rank_order(world):
            print(
                f"[rank {world.rank}] of {world.size}: pid {os.getpid()} on "
                f"{socket.gethostname()}, {device_name(world.device)}, {world.backend}",
                flush=True,
            )
        number = torch.tensor(world.rank + 1.0, device=world.device)
        dist.all_reduce(number)
        wanted = world.size * (world.size + 1) / 2
        if number.item() != wanted:
            raise UsageError(f"{world} got the sum {number.item()} and not {wanted}")
        if world.rank == 0:
            terms = " + ".join(str(rank + 1) for rank in range(world.size))
            print(f"all-reduce: {terms} = {number.item():.0f} on every rank", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    device: str = parser.parse_args().device
    run_and_exit(lambda: hello(device))
