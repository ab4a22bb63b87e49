"""One request as its client sees it: sent, read as a stream, timed, and checked to be complete."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import httpx

REQUEST_LIMIT_S = 600


class BenchmarkError(Exception):
    """A server that does not do its work; the message says what happened."""


@dataclass(frozen=True)
class Job:
    """A request to be: a prompt as token ids or text, and how many tokens are asked for."""

    prompt: list[int] | str
    max_tokens: int


@dataclass(frozen=True)
class Answer:
    """A request that was answered; times in seconds.

    Attributes:
        times: of each piece of text, since the request was sent.
        prompt_tokens, tokens: of prompt and answer, as the server counts them.
    """

    text: str
    prompt_tokens: int
    tokens: int
    times: tuple[float, ...]
    latency: float

    @property
    def ttft(self) -> float:
        """Time to first token."""
        return self.times[0]

    @property
    def gaps(self) -> list[float]:
        """Times between one piece and the next."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


@dataclass(frozen=True)
class Target:
    """The server that requests go to.

    Attributes:
        extra: fields that its requests have besides OpenAI's.
    """

    url: str
    model: str
    api_key: str | None = None
    extra: tuple[tuple[str, object], ...] = (("ignore_eos", True),)

    @classmethod
    def find(cls, url: str, model: str | None, api_key: str | None = None) -> Target:
        """Return the server at `url`, with its first model where none is named.

        Raises:
            BenchmarkError: it does not say which models it has.
        """
        if model is None:
            headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
            base = url.rstrip("/").removesuffix("/v1")
            try:
                response = httpx.get(f"{base}/v1/models", headers=headers, trust_env=False)
                response.raise_for_status()
                model = str(response.json()["data"][0]["id"])
            except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError) as error:
                raise BenchmarkError(f"{url} does not say which models it has: {error}") from error
        return cls(url, model, api_key)

    def client(self, connections: int | None) -> httpx.AsyncClient:
        """Return a client with as many connections as are wanted; None is no limit."""
        headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return httpx.AsyncClient(
            base_url=self.url.rstrip("/").removesuffix("/v1"),
            headers=headers,
            timeout=REQUEST_LIMIT_S,
            limits=httpx.Limits(max_connections=connections),
            trust_env=False,
        )


async def ask(client: httpx.AsyncClient, target: Target, job: Job) -> Answer:
    """Send one greedy request and read its stream to the end.

    Raises:
        BenchmarkError: the server refuses it, or its answer is not whole.
        httpx.HTTPError: the connection breaks.
    """
    body = {
        "model": target.model,
        "prompt": job.prompt,
        "max_tokens": job.max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        **dict(target.extra),
    }
    begin = time.perf_counter()
    received: list[tuple[float, bytes]] = []
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            said = (await response.aread()).decode(errors="replace")[:300]
            raise BenchmarkError(f"status {response.status_code}: {said}")
        # Parsed afterwards: the client takes as little of the machine's time as it can.
        async for data in response.aiter_raw():
            received.append((time.perf_counter() - begin, data))
    return _parse(received, time.perf_counter() - begin)


def _parse(received: list[tuple[float, bytes]], latency: float) -> Answer:
    times: list[float] = []
    text, rest, done = "", b"", False
    usage: dict[str, int] = {}
    for at, data in received:
        *lines, rest = (rest + data).split(b"\n")
        for line in map(bytes.strip, lines):
            if line == b"data: [DONE]":
                done = True
            elif line.startswith(b"data: "):
                chunk = json.loads(line.removeprefix(b"data: "))
                if "error" in chunk:
                    raise BenchmarkError(str(chunk["error"].get("message", chunk["error"])))
                usage = chunk.get("usage") or usage
                piece = "".join(choice.get("text") or "" for choice in chunk["choices"])
                if piece:
                    text += piece
                    times.append(at)
    if not done or not times or "completion_tokens" not in usage:
        raise BenchmarkError(f"an incomplete stream: [DONE] {done}, usage {usage}, text {text!r}")
    return Answer(text, usage["prompt_tokens"], usage["completion_tokens"], tuple(times), latency)
