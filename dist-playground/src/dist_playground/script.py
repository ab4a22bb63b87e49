"""What each training script calls: read the options, join the others, train, report."""

import io
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from dist_playground.data import Batches, read_standard_library, rows_of_rank
from dist_playground.ending import run_and_exit
from dist_playground.errors import UsageError
from dist_playground.model import MODELS
from dist_playground.process_group import process_group
from dist_playground.report import Report, write_atomically, write_record
from dist_playground.settings import Settings, parse_settings
from dist_playground.strategy import Strategy
from dist_playground.train import full_weights, train
from dist_playground.world import World, read_world

__all__ = ["run_script"]


def run_script(strategy: Strategy, description: str) -> NoReturn:
    """Train as the command line says and end the process: 0, or 1 after a line that says why."""
    settings = parse_settings(description)
    run_and_exit(lambda: _run(settings, strategy))


def _run(settings: Settings, strategy: Strategy) -> None:
    world = read_world(settings.device)
    # Everything that a rank can check alone is checked before it waits for the others.
    strategy.check(MODELS[settings.model], settings.sequence_length, world.size)
    share = world.size if strategy.splits_batch else 1
    rows = rows_of_rank(settings.batch_size, world.rank % share, share)
    _make_folders(settings, world)
    text = read_standard_library()
    batches = Batches(text, settings.batch_size, settings.sequence_length, settings.seed)
    with process_group(world, settings.timeout_s):
        _same_everywhere(world, settings, text.checksum)
        record, weights = _train(world, settings, strategy, batches, rows)
    record["text"] = {"files": text.files, "bytes": len(text.tokens), "crc32": text.checksum}
    if world.rank == 0:
        _write(settings, record, weights)


def _train(
    world: World, settings: Settings, strategy: Strategy, batches: Batches, rows: slice
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The run's record and, if wanted, its weights; the module itself ends here.

    It must not outlive the process group: see `process_group`.
    """
    report = Report(world, settings, strategy)
    module, result = train(world, settings, strategy, batches, rows, report)
    return report.end(result), full_weights(module) if settings.save else {}


def _make_folders(settings: Settings, world: World) -> None:
    """Find out now, not after the training, that the outputs have nowhere to go."""
    for path in (settings.json, settings.save):
        if path and world.rank == 0:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _same_everywhere(world: World, settings: Settings, checksum: int) -> None:
    """Refuse ranks that would train different things: another seed, text or torch on a host."""
    shared: dict[str, Any] = {
        name: getattr(settings, name)
        for name in ("model", "steps", "batch_size", "sequence_length", "dtype")
    }
    shared |= {name: getattr(settings, name) for name in ("learning_rate", "seed", "log_every")}
    shared |= {
        "saving": settings.save is not None,
        "text checksum (another Python version has another text)": checksum,
        "torch": torch.__version__,
    }
    everyone: list[Any] = [None] * world.size
    dist.all_gather_object(everyone, shared)
    for rank, theirs in enumerate(everyone):
        for name, value in everyone[0].items():
            if theirs[name] != value:
                raise UsageError(
                    f"rank 0 has {name} {value!r} and rank {rank} has {theirs[name]!r}: "
                    "start all ranks with the same options, Python and torch"
                )


def _write(settings: Settings, record: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
    if settings.json:
        write_record(record, settings.json)
    if settings.save:
        buffer = io.BytesIO()
        torch.save(weights, buffer)
        write_atomically(settings.save, buffer.getvalue())
