"""What benchmark.py is made of below the comparison: the server's process, and its HTTP clients."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

START_LIMIT_S = 180
REQUEST_LIMIT_S = 600
BLOCK_SIZE = 16


@dataclass(frozen=True)
class Load:
    """How many clients send how many requests in all, and of which size in tokens."""

    clients: int
    requests: int
    prompt: int
    output: int
    rounds: int

    @property
    def name(self) -> str:
        """The case's name in the record."""
        clients = "1 client" if self.clients == 1 else f"{self.clients} clients"
        return f"{clients}, {self.prompt} in, {self.output} out"


class BenchmarkError(Exception):
    """A server that does not do its work; the message says what happened."""


@dataclass(frozen=True)
class Answer:
    """One request as its client saw it; times in seconds."""

    text: str
    tokens: int
    times: tuple[float, ...]  # of each piece of text, since the request was sent
    latency: float

    @property
    def gaps(self) -> list[float]:
        """Times between one piece and the next."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


@contextmanager
def server(scheduler: str, model: str, loads: Sequence[Load]) -> Iterator[str]:
    """Run `mini-llm-server serve` on a free port and yield its URL; it never outlives the block."""
    seqs = max(load.clients for load in loads)
    blocks = max(load.clients * -(-(load.prompt + load.output) // BLOCK_SIZE) for load in loads)
    command = [sys.executable, "-m", "mini_llm_server.cli", "serve", "--port", "0"]
    command += ["--model", model, "--scheduler", scheduler, "--max-num-seqs", str(seqs)]
    command += ["--block-size", str(BLOCK_SIZE), "--num-blocks", str(blocks + seqs)]
    command += ["--max-num-batched-tokens", str(max(512, seqs)), "--log-level", "warning"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, preexec_fn=_end_with_parent
            )
        try:
            yield _wait_until_ready(process, log)
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _end_with_parent() -> None:
    """Let Linux kill the server if this process is killed and can no longer do it itself."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG


def _wait_until_ready(process: "subprocess.Popen[bytes]", log: Path) -> str:
    limit = time.monotonic() + START_LIMIT_S
    while time.monotonic() < limit:
        text = log.read_text(errors="replace")
        if found := re.search(r"ready in .*?(http://\S+)", text):
            return found[1]
        if process.poll() is not None:
            last = (text.strip().splitlines() or ["it said nothing"])[-1]
            raise BenchmarkError(f"the server ended with status {process.returncode}: {last}")
        time.sleep(0.1)
    raise BenchmarkError(f"the server was not ready within {START_LIMIT_S} s")


async def ask(client: httpx.AsyncClient, model: str, prompt: list[int], output: int) -> Answer:
    """Send one request, read its stream to the end, and check that it is complete."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": output,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begin = time.perf_counter()
    received: list[tuple[float, bytes]] = []
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise BenchmarkError(f"status {response.status_code}: {(await response.aread())!r}")
        # Parsed afterwards: the client takes as little of the machine's time as it can.
        async for data in response.aiter_raw():
            received.append((time.perf_counter() - begin, data))
    latency = time.perf_counter() - begin
    times: list[float] = []
    text, usage, rest, done = "", {}, b"", False
    for at, data in received:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line == b"data: [DONE]":
                done = True
            elif line:
                chunk = json.loads(line.removeprefix(b"data: "))
                if "error" in chunk:
                    raise BenchmarkError(chunk["error"]["message"])
                usage = chunk["usage"] or usage
                piece = "".join(choice["text"] for choice in chunk["choices"])
                if piece:
                    text += piece
                    times.append(at)
    if not done or not times or usage.get("prompt_tokens") != len(prompt):
        raise BenchmarkError(f"an incomplete stream: [DONE] {done}, usage {usage}, text {text!r}")
    if usage["completion_tokens"] != output:
        raise BenchmarkError(f"{usage['completion_tokens']} tokens came, {output} were asked for")
    return Answer(text, usage["completion_tokens"], tuple(times), latency)


async def play(
    url: str, model: str, prompts: Sequence[list[int]], load: Load
) -> tuple[list[Answer], float]:
    """Send all prompts through `load.clients` clients; return the answers and the seconds."""
    answers: dict[int, Answer] = {}
    waiting = iter(enumerate(prompts))
    limits = httpx.Limits(max_connections=load.clients)

    async def client_loop(client: httpx.AsyncClient) -> None:
        for i, prompt in waiting:
            answers[i] = await ask(client, model, prompt, load.output)

    async with httpx.AsyncClient(
        base_url=url, timeout=REQUEST_LIMIT_S, limits=limits, trust_env=False
    ) as client:
        await client.get("/health")
        begin = time.perf_counter()
        await asyncio.gather(*(client_loop(client) for _ in range(load.clients)))
        seconds = time.perf_counter() - begin
    return [answers[i] for i in range(len(prompts))], seconds
