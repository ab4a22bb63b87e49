"""The options that all training scripts share, read once into a frozen dataclass."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_playground.model import MODELS

__all__ = ["Settings", "parse_settings"]


@dataclass(frozen=True)
class Settings:
    """One training run; sizes are of the whole run, not of a rank."""

    impl: str  # "scratch" or "torch"
    mesh: str
    model: str
    steps: int
    batch_size: int  # rows of the global batch
    accumulate: int  # micro-batches a step
    sequence_length: int  # tokens a row
    dtype: str  # what the matrices compute in; weights and optimizer state stay float32
    compile: bool
    graph: bool
    zero1: bool
    reshard: bool
    schedule: str  # of the pipeline
    freeze: str
    learning_rate: float
    seed: int
    text_bytes: int
    device: str
    timeout_s: float
    log_every: int
    checkpoint: Path | None
    checkpoint_every: int
    json: Path | None
    save: Path | None


def _number(kind: type[int] | type[float], least: float, most: float) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = kind(text)
        if not least <= value <= most:  # written so that NaN is refused too
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most:g}")
        return value

    convert.__name__ = "whole number" if kind is int else "number"  # for argparse's message
    return convert


def parse_settings(description: str, arguments: Sequence[str] | None = None) -> Settings:
    """Read the command line; a wrong value ends the process with argparse's one-line error."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    count = _number(int, 1, 2**31)
    add(
        "--impl",
        choices=("scratch", "torch"),
        default="scratch",
        help="this package's own parallelism, or the one that torch has built in",
    )
    add(
        "--mesh",
        default="",
        metavar="AXIS=SIZE,...",
        help="sizes of the axes data, pipeline, context, tensor; the script's own takes the rest",
    )
    add("--model", choices=MODELS, default="tiny", help="size of the GPT")
    add("--steps", type=count, default=50, help="optimizer steps")
    add("--batch-size", type=count, default=16, help="rows of the global batch")
    add("--accumulate", type=count, default=1, help="micro-batches that a batch is cut into")
    add("--sequence-length", type=count, default=128, help="tokens a row")
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="what the matrices compute in (weights and optimizer stay float32)",
    )
    add("--compile", action="store_true", help="torch.compile every block")
    add("--graph", action="store_true", help="run each step as one CUDA graph")
    add("--zero1", action="store_true", help="ddp: each rank steps only its part of the weights")
    add(
        "--no-reshard",
        dest="reshard",
        action="store_false",
        help="fsdp: keep gathered weights from the forward to the backward",
    )
    add(
        "--schedule",
        choices=("1f1b", "afab"),
        default="1f1b",
        help="pipeline: one forward, one backward; or all forwards, then all backwards",
    )
    add("--freeze", default="", metavar="PREFIX", help="parameters whose name begins so stay")
    add("--learning-rate", type=_number(float, 0, 10), default=1e-3, help="of AdamW, constant")
    add("--seed", type=_number(int, 0, 2**63 - 1), default=0, help="of the weights and the batches")
    add(
        "--text-bytes",
        type=_number(int, 0, 2**31),
        default=0,
        help="train on only so much of the text; 0: all of it",
    )
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: a GPU a rank over NCCL where there are GPUs, else CPU over gloo",
    )
    add(
        "--timeout",
        dest="timeout_s",
        type=_number(float, 1, 86400),
        default=120.0,
        help="seconds a rank waits for the others before it gives up",
    )
    add("--log-every", type=count, default=10, help="steps between two lines")
    add(
        "--checkpoint",
        type=Path,
        metavar="FOLDER",
        help="save checkpoints there, and go on from the newest one",
    )
    add("--checkpoint-every", type=count, default=100, help="steps between two checkpoints")
    add("--json", type=Path, metavar="FILE", help="rank 0 writes losses and metrics here")
    add("--save", type=Path, metavar="FILE", help="rank 0 writes the whole model's weights here")
    return Settings(**vars(parser.parse_args(arguments)))
