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

__all__ = ["VOCABULARY_SIZE", "Batches", "Text", "read_standard_library", "rows_of_rank"]

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


def read_standard_library(folder: Path | None = None, files: int = FILES) -> Text:
    """Read the first `files` public modules, by name, of Python's standard library.

    Raises UsageError when the folder has no .py file (a Python that ships it as a zip file).
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    # Names with an underscore first are left out: some differ from machine to machine.
    modules = sorted(path for path in folder.glob("[a-z]*.py") if path.is_file())[:files]
    if not modules:
        raise UsageError(f"{folder} has no .py files to train on: use a Python that ships them")
    data = b"\n".join(path.read_bytes() for path in modules)
    return Text(torch.frombuffer(bytearray(data), dtype=torch.uint8), len(modules))


def rows_of_rank(global_batch: int, rank: int, size: int) -> slice:
    """The rows of the global batch that belong to this rank: equal shares, in order of rank.

    Equal, since the mean of the ranks' mean losses is the global mean only then.
    Raises UsageError when `size` does not divide `global_batch`.
    """
    if global_batch % size:
        fits = max(size, global_batch // size * size)
        raise UsageError(
            f"--batch-size {global_batch} is the global batch and is not divisible by the "
            f"{size} ranks: use --batch-size {fits}"
        )
    share = global_batch // size
    return slice(rank * share, (rank + 1) * share)


@dataclass(frozen=True)
class Batches:
    """Draws windows of the text: the same (seed, step) gives the same global batch anywhere."""

    text: Text
    batch_size: int
    sequence_length: int
    seed: int

    def __post_init__(self) -> None:
        available = len(self.text.tokens)
        if self.sequence_length >= available:
            raise UsageError(
                f"--sequence-length {self.sequence_length} is as long as the whole text of "
                f"{available} bytes: use at most {available - 1}"
            )

    def draw(self, step: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Inputs and targets [B, T], int64, of these rows; a target is the input's next byte."""
        # A spawn key keeps (seed, step) apart whatever their size. Both packed into one integer
        # would not do: torch's CPU generator, for one, keeps only the low 32 bits of a seed.
        sequence = np.random.SeedSequence(self.seed, spawn_key=(step,))
        generator = np.random.default_rng(sequence)
        last_start = len(self.text.tokens) - self.sequence_length
        starts_B = torch.from_numpy(generator.integers(0, last_start, size=self.batch_size))
        window_U = torch.arange(self.sequence_length + 1)
        tokens_BU = self.text.tokens[starts_B[rows, None] + window_U].long()
        return tokens_BU[:, :-1], tokens_BU[:, 1:]
