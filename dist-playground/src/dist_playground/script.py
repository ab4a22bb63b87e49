"""What each training script calls: read the options, join the others, train, report."""

import io
from dataclasses import asdict
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from dist_playground.data import Batches, read_standard_library
from dist_playground.ending import run_and_exit
from dist_playground.errors import UsageError
from dist_playground.plan import build, check
from dist_playground.process_group import process_group
from dist_playground.report import Report, write_atomically, write_record
from dist_playground.settings import Settings, parse_settings
from dist_playground.train import build_model, train
from dist_playground.weights import whole_weights
from dist_playground.world import World, read_world

__all__ = ["run", "run_script"]


def run_script(kind: str, description: str) -> NoReturn:
    """Train as the command line says and end the process: 0, or 1 after a line that says why."""
    settings = parse_settings(description)
    run_and_exit(lambda: _run(kind, settings))


def _run(kind: str, settings: Settings) -> None:
    world = read_world(settings.device)
    # Everything that a rank can check alone is checked before it waits for the others.
    sizes = check(kind, settings, world)
    _make_folders(settings, world)
    text = read_standard_library(most=settings.text_bytes)
    batches = Batches(text, settings.batch_size, settings.sequence_length, settings.seed)
    with process_group(world, settings.timeout_s):
        _same_everywhere(world, settings, text.checksum)
        record, weights = run(kind, world, settings, sizes, batches)
    record["text"] = {"files": text.files, "bytes": len(text.tokens), "crc32": text.checksum}
    if world.rank == 0:
        _write(settings, record, weights)


def run(
    kind: str, world: World, settings: Settings, sizes: dict[str, int], batches: Batches
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The run's record and, if wanted, its weights; the model itself ends here.

    It must not outlive the process group: see `process_group`.
    """
    model = build_model(settings, world.device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    plan = build(kind, settings, world, sizes, model)
    report = Report(world, settings, kind, plan.grid)
    result = train(world, settings, plan, batches, parameters, report)
    weights = whole_weights(plan.parallel) if settings.save else {}
    return report.end(result), weights


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
    shared = asdict(settings)
    for name in ("device", "timeout_s", "json", "save", "checkpoint"):  # may differ by host
        del shared[name]
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
