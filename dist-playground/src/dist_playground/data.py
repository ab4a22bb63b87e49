"""Real text that every machine has: the Python standard library's own source, as bytes.

The global batch of a step depends on the seed and the step alone. A rank takes its rows of it,
so any number of processes together see exactly what one process would.
"""

import sysconfig
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dist_playground.errors import UsageError

__all__ = ["VOCABULARY_SIZE", "Batches", "Text", "read_standard_library", "share_of"]

VOCABULARY_SIZE = 256  # a token is a byte
FILES = 64  # modules read, in order of name: about 1.5 MB


@dataclass(frozen=True)
class Text:
    """The training text: a token a byte, [N] uint8, and how many files it is from."""

    tokens: Tensor
    files: int

    @property
    def checksum(self) -> int:
        """CRC-32 of the bytes: two ranks on different Python versions read different text."""
        return zlib.crc32(self.tokens.numpy().tobytes())


def read_standard_library(folder: Path | None = None, most: int = 0) -> Text:
    """Read the first 64 public modules, by name, of Python's standard library.

    `most` above 0 keeps only so many bytes. Raises UsageError when the folder has no .py file (a
    Python that ships it as a zip file).
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    # Names with an underscore first are left out: some differ from machine to machine.
    modules = sorted(path for path in folder.glob("[a-z]*.py") if path.is_file())[:FILES]
    if not modules:
        raise UsageError(f"{folder} has no .py files to train on: use a Python that ships them")
    data = b"\n".join(path.read_bytes() for path in modules)
    data = data[:most] if most else data
    return Text(torch.frombuffer(bytearray(data), dtype=torch.uint8), len(modules))


def share_of(rows: int, index: int, parts: int) -> slice:
    """The rows that belong to part `index` of `parts`, in order; the first ones get one more."""
    share, more = divmod(rows, parts)
    start = index * share + min(index, more)
    return slice(start, start + share + (index < more))


@dataclass(frozen=True)
class Batches:
    """Epochs over all windows of the text, shuffled: step k's batch is the same anywhere.

    It depends on the seed and k alone, so a run that resumes at step k needs nothing else to go
    on exactly, with any number of ranks. The last batch of an epoch may have fewer rows.
    """

    text: Text
    batch_size: int  # rows of the global batch
    sequence_length: int
    seed: int

    def __post_init__(self) -> None:
        available = len(self.text.tokens)
        if self.sequence_length >= available:
            raise UsageError(
                f"--sequence-length {self.sequence_length} is as long as the whole text of "
                f"{available} bytes: use at most {available - 1}"
            )

    @property
    def windows(self) -> int:
        """How many windows of sequence_length tokens (and the one that follows) the text has."""
        return (len(self.text.tokens) - 1) // self.sequence_length

    @property
    def steps_per_epoch(self) -> int:
        """Batches until every window was drawn once."""
        return -(-self.windows // self.batch_size)

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets [B, T], int64, of a step; a target is the input's next byte."""
        epoch, number = divmod(step, self.steps_per_epoch)
        # A spawn key keeps (seed, epoch) apart whatever their size. Both packed into one integer
        # would not do: torch's CPU generator, for one, keeps only the low 32 bits of a seed.
        sequence = np.random.SeedSequence(self.seed, spawn_key=(epoch,))
        order = np.random.default_rng(sequence).permutation(self.windows)
        rows = order[number * self.batch_size : (number + 1) * self.batch_size]
        starts_B = torch.from_numpy(rows * self.sequence_length)
        window_U = torch.arange(self.sequence_length + 1)
        tokens_BU = self.text.tokens[starts_B[:, None] + window_U].long()
        return tokens_BU[:, :-1], tokens_BU[:, 1:]
