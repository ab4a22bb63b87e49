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

from dist_playground.process_group import in_rank_order
from dist_playground.settings import Settings
from dist_playground.strategy import Strategy
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

    def __init__(self, world: World, settings: Settings, strategy: Strategy) -> None:
        self._world = world
        self._settings = settings
        self._strategy = strategy

    def start(self, result: "Result", rows: slice) -> None:
        """Each rank says who it is, what it holds and which rows it trains on."""
        if self._world.rank == 0:
            ranks = "1 rank" if self._world.size == 1 else f"{self._world.size} ranks"
            apart = self._world.size > 1 and not self._strategy.synchronises
            print(
                f"{self._strategy.name}: {ranks} over {self._world.backend}"
                f"{', not talking to each other' if apart else ''}, "
                f"{self._settings.model} GPT of {result.parameters:,} parameters, "
                f"global batch {self._settings.batch_size} x {self._settings.sequence_length} "
                f"bytes, {self._settings.dtype}",
                flush=True,
            )
        for _ in in_rank_order(self._world):
            share = result.held / result.parameters
            print(
                f"[rank {self._world.rank}] pid {os.getpid()} on {socket.gethostname()}, "
                f"{device_name(self._world.device)}: holds {result.held:,} parameters "
                f"({share:.0%}), trains on rows {rows.start} to {rows.stop - 1}",
                flush=True,
            )

    def line(self, step: int, result: "Result", losses_by_rank: list[float]) -> None:
        """Rank 0 prints the last step's loss and the rate since the last line."""
        if self._world.rank != 0:
            return
        recent = result.step_seconds[-min(self._settings.log_every, step + 1) :]
        rate = self._tokens_a_step() * len(recent) / sum(recent)
        each = ""
        if self._strategy.splits_batch and 1 < self._world.size <= 8:
            each = f" (by rank {' '.join(f'{loss:.4f}' for loss in losses_by_rank)})"
        print(
            f"step {step + 1:4d}/{self._settings.steps}  loss {result.losses[-1]:.4f}{each}  "
            f"{rate:,.0f} tokens/s  peak {result.peak_bytes / MIB:,.0f} MiB",
            flush=True,
        )

    def _tokens_a_step(self) -> int:
        return self._settings.batch_size * self._settings.sequence_length

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
        del settings["json"], settings["save"]
        return {
            "strategy": self._strategy.name,
            "backend": self._world.backend,
            "world_size": self._world.size,
            "parameters": result.parameters,
            "settings": settings,
            "torch": torch.__version__,
            "losses": result.losses,
            "gradient_norms": result.gradient_norms,
            "tokens_per_second": [self._rate(seconds) for seconds in _by_step(ranks)],
            "ranks": ranks,
        }

    def _rate(self, seconds_by_rank: list[float]) -> float:
        # The mean of the ranks' own rates. Where they wait for each other these are equal; where
        # they do not, this is their sum over shares of the batch, and flatters nobody.
        rates = [self._tokens_a_step() / seconds for seconds in seconds_by_rank]
        return statistics.fmean(rates)


def _by_step(ranks: list[dict[str, Any]]) -> list[list[float]]:
    return [list(step) for step in zip(*(rank["step_seconds"] for rank in ranks), strict=True)]


def write_record(record: dict[str, Any], path: Path) -> None:
    """Write the run's record as JSON."""
    write_atomically(path, json.dumps(record, indent=1, allow_nan=False).encode() + b"\n")
