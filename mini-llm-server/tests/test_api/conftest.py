"""A real server in this process: uvicorn in a thread, on a free port, with the dummy model."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from mini_llm_server.api.app import create_app
from mini_llm_server.api.server import Server, open_socket
from mini_llm_server.engine.engine import Engine, EngineConfig, EngineStats
from mini_llm_server.engine.engine_thread import EngineThread
from mini_llm_server.model.loader import LoadedModel, load_model


@dataclass
class Stream:
    """A stream of server-sent events, parsed by hand and checked on the way."""

    chunks: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def parse(cls, text: str) -> Stream:
        assert text.endswith("\n\n")
        *events, done = text[:-2].split("\n\n")
        assert done == "data: [DONE]"
        assert all(each.startswith("data: ") and "\n" not in each for each in events)
        return cls([json.loads(each.removeprefix("data: ")) for each in events])

    def text(self, index: int = 0) -> str:
        choices = [choice for chunk in self.chunks for choice in chunk["choices"]]
        return "".join(
            choice.get("text") or choice.get("delta", {}).get("content", "")
            for choice in choices
            if choice["index"] == index
        )


@dataclass
class Live:
    """A running server, with a look behind its HTTP side."""

    url: str
    server: Server
    engine: Engine
    engine_thread: EngineThread

    def post(self, path: str, **body: Any) -> httpx.Response:
        # httpx's own json= refuses half characters, which a client may well send as "\\ud83d".
        content = json.dumps({"model": "dummy", **body})
        headers = {"content-type": "application/json"}
        return httpx.post(self.url + path, content=content, headers=headers, timeout=60)

    def send(self, path: str, **body: Any) -> socket.socket:
        """Send a request without waiting for its answer."""
        content = json.dumps({"model": "dummy", **body}).encode()
        host, port = self.url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), timeout=20)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        return connection

    def complete(self, prompt: Any, **body: Any) -> dict[str, Any]:
        response = self.post("/v1/completions", prompt=prompt, temperature=0, **body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def stream(self, path: str, **body: Any) -> Stream:
        response = self.post(path, stream=True, **body)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        return Stream.parse(response.text)

    def stats(self) -> EngineStats:
        return self.engine_thread.stats()

    def wait_until(self, what: Callable[[EngineStats], bool], seconds: float = 20) -> EngineStats:
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if what(stats := self.stats()):
                return stats
            time.sleep(0.005)
        raise AssertionError(f"did not happen within {seconds} s: {self.stats()}")

    def wait_until_idle(self, seconds: float = 20) -> EngineStats:
        """Return the statistics at idle, where no block may be in use."""
        return self.wait_until(
            lambda s: not s.waiting and not s.running and not s.blocks_used, seconds
        )


@contextmanager
def running(
    loaded: LoadedModel, drain_s: float = 5.0, api_key: str | None = None, **config: Any
) -> Iterator[Live]:
    engine = Engine(loaded, EngineConfig(**config))
    app = create_app(engine, api_key=api_key)
    listener = open_socket("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    ready = threading.Event()
    server = Server(app, drain_s=drain_s, on_ready=ready.set)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        assert ready.wait(20)
        yield Live(url, server, engine, app.state.service.engine_thread)
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def dummy() -> LoadedModel:
    return load_model("dummy", device="cpu")


@pytest.fixture(scope="session")
def shared(dummy: LoadedModel) -> Iterator[Live]:
    with running(dummy) as live:
        yield live


@pytest.fixture
def live(shared: Live) -> Iterator[Live]:
    """The server of all tests; each leaves it idle, with no block held."""
    yield shared
    stats = shared.wait_until_idle()
    assert stats.blocks_used == 0
    assert stats.blocks_free + stats.blocks_cached == stats.blocks_total


@pytest.fixture
def start(dummy: LoadedModel) -> Callable[..., Any]:
    """`with start(max_waiting=2) as live:` runs a server with other settings."""

    def start(**options: Any) -> Any:
        return running(dummy, **options)

    return start


@pytest.fixture(scope="session")
def serve() -> Callable[..., Any]:
    """`with serve(loaded, num_blocks=100) as live:` runs a server with another model."""
    return running
