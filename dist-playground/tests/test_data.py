"""Every window once an epoch, in an order that depends on the seed alone; shares are exact."""

import sys
import zlib
from pathlib import Path

import pytest
import torch
from dist_playground.data import Batches, Text, read_standard_library, share_of
from dist_playground.errors import UsageError


def counting_text(length: int) -> Text:
    """Token i is i mod 251: a window shows where it was cut."""
    return Text((torch.arange(length) % 251).to(torch.uint8), files=1)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 12, 13])
@pytest.mark.parametrize("rows", [0, 1, 7, 12])
def test_shares_together_are_the_whole(rows, size):
    shares = [share_of(rows, index, size) for index in range(size)]
    assert [row for share in shares for row in range(rows)[share]] == list(range(rows))
    lengths = [share.stop - share.start for share in shares]
    assert max(lengths) - min(lengths) <= 1


def test_a_target_is_the_next_byte():
    batches = Batches(counting_text(1000), batch_size=64, sequence_length=15, seed=0)
    inputs, targets = batches.draw(0)
    assert inputs.shape == targets.shape == (64, 15)
    assert inputs.dtype == torch.int64
    assert torch.equal(targets, (inputs + 1) % 251)


@pytest.mark.parametrize("length", [98, 99, 100, 109])
def test_an_epoch_has_every_window_once_and_a_short_last_batch(length):
    batches = Batches(counting_text(length), batch_size=4, sequence_length=10, seed=0)
    assert batches.windows == (length - 1) // 10
    for epoch in range(3):
        steps = range(epoch * batches.steps_per_epoch, (epoch + 1) * batches.steps_per_epoch)
        drawn = [batches.draw(step)[0] for step in steps]
        assert [len(rows) for rows in drawn[:-1]] == [4] * (len(drawn) - 1)
        assert len(drawn[-1]) == batches.windows - 4 * (len(drawn) - 1) > 0
        starts = sorted(torch.cat(drawn)[:, 0].tolist())
        assert starts == [10 * number for number in range(batches.windows)]


def test_seed_and_epoch_each_change_the_order():
    text = read_standard_library(most=30000)

    def epoch(seed: int, number: int) -> torch.Tensor:
        batches = Batches(text, 1000, 32, seed)
        assert batches.steps_per_epoch == 1
        return batches.draw(number)[0]

    assert torch.equal(epoch(1, 2), epoch(1, 2))
    # Keeping only 32 bits of the seed, or joining seed and epoch word by word, would repeat one.
    different = [epoch(0, 0), epoch(0, 1), epoch(1, 0), epoch(2**32, 0), epoch(2**32, 1)]
    for i, first in enumerate(different):
        for second in different[i + 1 :]:
            assert not torch.equal(first, second)


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(UsageError, match=r"--sequence-length 5 .* 5 bytes: use at most 4"):
        Batches(counting_text(5), batch_size=1, sequence_length=5, seed=0)
    Batches(counting_text(5), batch_size=1, sequence_length=4, seed=0).draw(0)


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
