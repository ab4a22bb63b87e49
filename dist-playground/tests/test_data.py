"""The global batch depends on seed and step alone, and the ranks' rows make it up exactly."""

import sys
import zlib
from pathlib import Path

import pytest
import torch
from dist_playground.data import Batches, Text, read_standard_library, rows_of_rank
from dist_playground.errors import UsageError


def counting_text(length: int) -> Text:
    """Token i is i mod 251: a window shows where it was cut."""
    return Text((torch.arange(length) % 251).to(torch.uint8), files=1)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 12])
def test_ranks_together_see_the_global_batch(size):
    batches = Batches(read_standard_library(), batch_size=12, sequence_length=17, seed=3)
    whole = batches.draw(5, slice(None))
    parts = [batches.draw(5, rows_of_rank(12, rank, size)) for rank in range(size)]
    for index in (0, 1):
        assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])
    assert whole[0].shape == whole[1].shape == (12, 17)
    assert whole[0].dtype == torch.int64


def test_a_target_is_the_next_byte():
    batches = Batches(counting_text(1000), batch_size=64, sequence_length=20, seed=0)
    inputs, targets = batches.draw(0, slice(None))
    assert torch.equal(targets, (inputs + 1) % 251)


def test_seed_and_step_each_change_the_batch():
    text = read_standard_library()

    def draw(seed: int, step: int) -> torch.Tensor:
        return Batches(text, 8, 32, seed).draw(step, slice(None))[0]

    assert torch.equal(draw(1, 2), draw(1, 2))
    # Keeping only 32 bits of the seed, or joining seed and step word by word, would repeat one.
    different = [draw(0, 0), draw(0, 1), draw(1, 0), draw(2**32, 0), draw(2**32, 1), draw(1, 1)]
    for i, first in enumerate(different):
        for second in different[i + 1 :]:
            assert not torch.equal(first, second)


def test_every_start_is_drawn_and_none_is_out_of_bounds():
    # 5 bytes, windows of 3 + 1: starts 0 and 1 only.
    batches = Batches(counting_text(5), batch_size=64, sequence_length=3, seed=0)
    inputs, targets = batches.draw(0, slice(None))
    assert set(inputs[:, 0].tolist()) == {0, 1}
    assert targets.max() == 4


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(UsageError, match=r"--sequence-length 5 .* 5 bytes: use at most 4"):
        Batches(counting_text(5), batch_size=1, sequence_length=5, seed=0)
    Batches(counting_text(5), batch_size=1, sequence_length=4, seed=0).draw(0, slice(None))


@pytest.mark.parametrize(("batch", "size", "fits"), [(7, 2, 6), (1, 4, 4), (10, 4, 8)])
def test_a_batch_that_does_not_divide_is_refused(batch, size, fits):
    with pytest.raises(UsageError, match=f"{batch} .* {size} ranks: use --batch-size {fits}"):
        rows_of_rank(batch, 0, size)


def test_the_text_is_python_source_and_the_same_each_time():
    text = read_standard_library()
    assert text.files == 64
    assert text.tokens.dtype == torch.uint8
    data = text.tokens.numpy().tobytes()
    assert b"import " in data
    assert text.checksum == zlib.crc32(data) == read_standard_library().checksum
    first = sorted(Path(sys.modules["ast"].__file__).parent.glob("[a-z]*.py"))[0]
    assert data.startswith(first.read_bytes())


def test_a_python_without_source_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"has no \.py files"):
        read_standard_library(tmp_path)
