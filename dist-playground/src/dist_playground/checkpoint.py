"""Sharded checkpoints: every rank writes the pieces that it has, any other run reads them.

torch.distributed.checkpoint stores rectangles of whole tensors with their place, and a reader
takes what overlaps its own rectangles. So a run of two FSDP ranks goes on as one of four
tensor-parallel ones, or alone, or with torch's own parallelism.

A checkpoint is written into a folder whose name ends in .partial, which is renamed when all of it
is on the disk: a folder named step-N is complete. The folder must be shared by all hosts.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
)
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import load as read
from torch.distributed.checkpoint.state_dict_saver import save as write

from dist_playground.errors import UsageError
from dist_playground.layout import Piece
from dist_playground.strategy import Parallel

__all__ = ["load", "newest", "save"]

KEPT = 2  # checkpoints; older ones are removed
MOMENTS = ("exp_avg", "exp_avg_sq")


class Rectangles:
    """Parts of one whole tensor, as torch.distributed.checkpoint wants to be told of them.

    The three methods in underscores are its protocol for tensors that it does not know.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = torch.Size(shape)
        self._parts: dict[torch.Size, Tensor] = {}

    def size(self) -> torch.Size:
        """Of the whole tensor: a reader compares it with the checkpoint's."""
        return self.shape

    def add(self, offset: tuple[int, ...], part: Tensor) -> None:
        """One more part, which begins at `offset` of the whole."""
        self._parts[torch.Size(offset)] = part

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(name, offset),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(offsets=offset, sizes=part.size()),
                    properties=TensorProperties.create_from_tensor(part),
                    size=self.shape,
                ),
            )
            for offset, part in self._parts.items()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(o, part.size()) for o, part in self._parts.items()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self._parts[index.offset]


class SavePlanner(DefaultSavePlanner):
    """Finds a rectangle's numbers when they are to be written."""

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        """The part that begins at the index's offset."""
        return self.state_dict[index.fqn].__get_tensor_shard__(index)  # type: ignore[no-any-return]


class LoadPlanner(DefaultLoadPlanner):
    """Finds where the numbers of a rectangle are to be read into."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False)

    def set_up_planner(
        self,
        state_dict: dict[str, Any],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        """Take the state as it is: the default one drops what is no tensor."""
        self.state_dict, self.metadata = state_dict, metadata
        self.is_coordinator = is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """The part that begins at the index's offset."""
        return self.state_dict[index.fqn].__get_tensor_shard__(index)  # type: ignore[no-any-return]


def _state(parallel: Parallel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Views of this rank's weights and moments, named by the whole model's tensors."""
    state: dict[str, Rectangles] = {}

    def add(kind: str, piece: Piece, tensor: Tensor) -> None:
        whole = state.setdefault(f"{kind}.{piece.name}", Rectangles(piece.shape))
        whole.add(piece.offset, piece.of(tensor))

    for piece in parallel.pieces():
        add("weight", piece, piece.owner.detach())
        if piece.owner.requires_grad:
            for kind in MOMENTS:
                add(kind, piece, optimizer.state[piece.owner][kind])
    return state


def save(
    folder: Path,
    step: int,
    parallel: Parallel,
    optimizer: torch.optim.Optimizer,
    progress: dict[str, Any],
) -> None:
    """Write a checkpoint after `step` steps; `progress` is kept as JSON. Collective."""
    partial, complete = folder / f"step-{step:08}.partial", folder / f"step-{step:08}"
    first = dist.get_rank() == 0
    if first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    # Files are flushed to the disk before they count; the metadata, which is last, too.
    write(
        _state(parallel, optimizer), storage_writer=FileSystemWriter(partial), planner=SavePlanner()
    )
    if first:
        (partial / "progress.json").write_text(json.dumps({"step": step, **progress}))
        if not complete.exists():
            partial.rename(complete)
        _flush(folder)
        for old in _complete(folder)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    dist.barrier()


def _flush(folder: Path) -> None:
    """Make the renaming itself survive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _complete(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.suffix != ".partial")


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The last complete checkpoint and its progress, the same on every rank. Collective."""
    found: list[Any] = [None]
    if dist.get_rank() == 0:
        complete = _complete(folder)
        if complete:
            found = [(complete[-1], json.loads((complete[-1] / "progress.json").read_text()))]
    dist.broadcast_object_list(found)
    return found[0]  # type: ignore[no-any-return]


def load(path: Path, parallel: Parallel, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Read this rank's pieces into its weights and moments. Collective.

    Raises UsageError for a checkpoint of another model.
    """
    for parameter in parallel.parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step), device=parameter.device),
            **{kind: torch.zeros_like(parameter) for kind in MOMENTS},
        }
    try:
        read(
            _state(parallel, optimizer),
            storage_reader=FileSystemReader(path),
            planner=LoadPlanner(),
        )
    except CheckpointException as error:
        reason = str(next(iter(error.failures.values()))[0]).splitlines()[0]
        raise UsageError(
            f"{path} is no checkpoint of this model ({reason}): use the options it was saved with"
        ) from error
    parallel.stepped()
