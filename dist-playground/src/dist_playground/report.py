"""What a run shows: each rank's line, the losses as they come, and the JSON that rank 0 writes."""

import json
import os
import socket
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from dist_playground.data import share_of
from dist_playground.grid import AXES, Grid
from dist_playground.process_group import in_rank_order
from dist_playground.settings import Settings
from dist_playground.world import World

if TYPE_CHECKING:
    from dist_playground.train import Result

__all__ = ["Report", "device_name", "write_atomically"]

MIB = 2**20


def device_name(device: torch.device) -> str:
    """The GPU's name, or "cpu" with the number of threads torch uses."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'s' * (threads > 1)})"


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside the file and rename: a reader sees the whole file or none."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_bytes(data)
    partial.replace(path)


class Report:
    """Prints from all ranks in order, and gathers what rank 0 writes."""

    def __init__(self, world: World, settings: Settings, kind: str, grid: Grid) -> None:
        self._world = world
        self._settings = settings
        self._kind = kind
        self._grid = grid

    def start(self, result: "Result") -> None:
        """Each rank says who it is, what it holds and which rows it trains on."""
        if self._world.rank == 0:
            ranks = "1 rank" if self._world.size == 1 else f"{self._world.size} ranks"
            mesh = " x ".join(f"{name} {n}" for name, n in self._grid.sizes.items() if n > 1)
            apart = ", not talking to each other" if self._kind == "single" and mesh else ""
            print(
                f"{self._kind} ({self._settings.impl}): {ranks} over {self._world.backend}"
                f"{f' as {mesh}' if mesh else ''}{apart}, "
                f"{self._settings.model} GPT of {result.parameters:,} parameters, "
                f"global batch {self._settings.batch_size} x {self._settings.sequence_length} "
                f"bytes, {self._settings.dtype}",
                flush=True,
            )
        rows = share_of(
            self._settings.batch_size // self._settings.accumulate,
            self._grid.data.index,
            self._grid.data.size,
        )
        batch = "batch" if self._settings.accumulate == 1 else "micro-batch"
        place = self._grid.coordinates(self._world.rank)
        where = ", ".join(f"{name} {place[name]}" for name in AXES if self._grid.sizes[name] > 1)
        for _ in in_rank_order(self._world):
            share = result.held / result.parameters
            print(
                f"[rank {self._world.rank}]{f' ({where})' if where else ''} pid {os.getpid()} on "
                f"{socket.gethostname()}, {device_name(self._world.device)}: steps "
                f"{result.held:,} parameters ({share:.0%}), trains on rows {rows.start} to "
                f"{rows.stop - 1} of a {batch}",
                flush=True,
            )

    def line(self, step: int, result: "Result") -> None:
        """Rank 0 prints the last step's loss and the rate since the last line."""
        if self._world.rank != 0:
            return
        recent = slice(-min(self._settings.log_every, len(result.step_seconds)), None)
        rate = sum(result.step_tokens[recent]) / sum(result.step_seconds[recent])
        print(
            f"step {step + 1:4d}/{self._settings.steps}  loss {result.losses[-1]:.4f}  "
            f"{rate:,.0f} tokens/s  peak {result.peak_bytes / MIB:,.0f} MiB",
            flush=True,
        )

    def end(self, result: "Result") -> dict[str, Any]:
        """Each rank prints its own line; every rank gets the whole run's record."""
        for _ in in_rank_order(self._world):
            print(
                f"[rank {self._world.rank}] median step "
                f"{statistics.median(result.step_seconds) * 1e3:,.1f} ms, peak memory "
                f"{result.peak_bytes / MIB:,.1f} MiB, of which weights, gradients and AdamW state "
                f"{result.state_bytes / MIB:,.2f} MiB",
                flush=True,
            )
        mine = {
            "rank": self._world.rank,
            "device": device_name(self._world.device),
            "held_parameters": result.held,
            "state_bytes": result.state_bytes,
            "peak_bytes": result.peak_bytes,
            "step_seconds": result.step_seconds,
        }
        ranks: list[Any] = [None] * self._world.size
        dist.all_gather_object(ranks, mine)
        settings = asdict(self._settings)
        del settings["json"], settings["save"], settings["checkpoint"]
        seconds_by_step = zip(*(rank["step_seconds"] for rank in ranks), strict=True)
        return {
            "kind": self._kind,
            "mesh": self._grid.sizes,
            "backend": self._world.backend,
            "world_size": self._world.size,
            "parameters": result.parameters,
            "settings": settings,
            "torch": str(torch.__version__),
            "first_step": result.first_step,
            "losses": result.losses,
            "gradient_norms": result.gradient_norms,
            # The mean of the ranks' own rates. Where they wait for each other these are equal;
            # where they do not, this is their sum over shares of the batch, and flatters nobody.
            "tokens_per_second": [
                statistics.fmean(tokens / s for s in seconds)
                for tokens, seconds in zip(result.step_tokens, seconds_by_step, strict=True)
            ],
            "ranks": ranks,
        }


def write_record(record: dict[str, Any], path: Path) -> None:
    """Write the run's record as JSON."""
    write_atomically(path, json.dumps(record, indent=1, allow_nan=False).encode() + b"\n")
