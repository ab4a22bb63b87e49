"""What the commands share: values of options, building an engine from them, and failing clearly."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:
    import torch

    from mini_llm_server.engine.engine import Engine


class SchedulerName(str, enum.Enum):
    """Values of --scheduler."""

    continuous = "continuous"
    static = "static"
    fifo = "fifo"


class DtypeName(str, enum.Enum):
    """Values of --dtype."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class LogLevel(str, enum.Enum):
    """Values of --log-level."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def load_engine(model: str, dtype: DtypeName, device: str, **options: Any) -> Engine:
    """Build the engine, or end the command with one line that says why not.

    Args:
        options: fields of `EngineConfig`.
    """
    from mini_llm_server.engine.engine import Engine, EngineConfig

    try:
        config = EngineConfig(dtype=_torch_dtype(dtype), device=_check_device(device), **options)
        return Engine.load(model, config)
    except (ValueError, FileNotFoundError) as error:
        fail(str(error))
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        first_line = (str(error) or "out of memory").splitlines()[0]
        fail(f"model and KV cache do not fit into memory ({first_line}): lower --num-blocks")


def _torch_dtype(name: DtypeName) -> torch.dtype | None:
    import torch

    chosen: torch.dtype | None = None if name is DtypeName.auto else getattr(torch, name.value)
    return chosen


def _check_device(name: str) -> str | None:
    import torch

    if name == "auto":
        return None
    try:
        device = torch.device(name)
    except RuntimeError:
        fail(f"--device is {name!r}: use auto, cpu, cuda or cuda:1")
    if device.type not in ("cpu", "cuda"):
        fail(f"--device is {name!r}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        fail(f"--device is {name!r}, and PyTorch sees {torch.cuda.device_count()} GPUs here")
    return name


def fail(message: str) -> NoReturn:
    """End the command with one line on stderr."""
    typer.echo(f"mini-llm-server: {message}", err=True)
    raise typer.Exit(1)
