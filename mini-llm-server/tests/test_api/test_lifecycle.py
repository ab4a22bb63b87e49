"""Health, a dying engine, and the server's end."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx
import pytest
from mini_llm_server.model.loader import LoadedModel


def test_health_and_models(live: Any) -> None:
    health = httpx.get(live.url + "/health")
    assert health.status_code == 200
    report = health.json()
    assert report["status"] == "ok"
    assert (report["model"], report["dtype"]) == ("dummy", "float32")
    stats = report["engine"]
    assert stats["blocks_used"] == 0
    assert stats["blocks_free"] + stats["blocks_cached"] == stats["blocks_total"] > 0
    (model,) = httpx.get(live.url + "/v1/models").json()["data"]
    assert model["id"] == "dummy"
    assert model["object"] == "model"
    assert httpx.get(live.url + "/v1/models/dummy").json() == model


def test_a_dead_engine_leaves_nobody_waiting(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with start() as live:
        step = live.engine.step

        def breaks_later() -> Any:
            outputs = step()
            if live.engine.stats().running == 2:
                raise RuntimeError("the device is gone")
            return outputs

        monkeypatch.setattr(live.engine, "step", breaks_later)
        streamed: list[Any] = []
        body = {"prompt": "a", "max_tokens": 1000, "ignore_eos": True}
        thread = threading.Thread(
            target=lambda: streamed.append(live.stream("/v1/completions", **body))
        )
        thread.start()
        whole = live.post("/v1/completions", **body)
        thread.join(20)
        assert whole.status_code == 500
        assert "the device is gone" in whole.json()["error"]["message"]
        assert "the device is gone" in streamed[0].chunks[-1]["error"]["message"]
        health = httpx.get(live.url + "/health")
        assert health.status_code == 503
        assert health.json()["status"] == "dead"
        late = live.post("/v1/completions", **body)
        assert late.status_code == 503
        assert late.json()["error"]["code"] == "engine_dead"


def test_an_error_in_the_server_itself_tells_nothing(
    start: Any, dummy: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(text: str) -> list[int]:
        raise KeyError("a secret of the server")

    with start() as live:
        monkeypatch.setattr(dummy.tokenizer, "encode", breaks, raising=False)
        response = live.post("/v1/completions", prompt="a")
        assert response.status_code == 500
        assert response.json()["error"]["type"] == "server_error"
        assert "secret" not in response.text
        monkeypatch.undo()
        assert live.complete("a", max_tokens=2)["usage"]["completion_tokens"] == 2


def test_a_slow_tokenizer_holds_up_only_its_own_request(
    start: Any, dummy: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = dummy.tokenizer.encode

    def slow(text: str) -> list[int]:
        time.sleep(1)
        return encode(text)

    with start() as live:
        monkeypatch.setattr(dummy.tokenizer, "encode", slow)
        got: list[httpx.Response] = []
        body = {"prompt": "slow", "max_tokens": 2}
        thread = threading.Thread(target=lambda: got.append(live.post("/v1/completions", **body)))
        thread.start()
        time.sleep(0.2)
        begin = time.monotonic()
        live.complete([1, 2, 3], max_tokens=2)  # needs no tokenizer
        assert thread.is_alive()
        assert time.monotonic() - begin < 0.7
        thread.join(20)
        assert got[0].status_code == 200


def test_the_description_of_the_api_is_served(live: Any) -> None:
    paths = httpx.get(live.url + "/openapi.json").json()["paths"]
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/health"} <= paths.keys()


@pytest.mark.parametrize("stream", [True, False])
def test_the_end_waits_for_running_answers(start: Any, stream: bool) -> None:
    with start(drain_s=20) as live:
        got: list[httpx.Response] = []
        body = {"prompt": "a", "max_tokens": 300, "ignore_eos": True, "stream": stream}
        thread = threading.Thread(target=lambda: got.append(live.post("/v1/completions", **body)))
        thread.start()
        live.wait_until(lambda s: s.running == 1)
        live.server.should_exit = True
        thread.join(20)
    assert got[0].status_code == 200
    assert '"finish_reason":"length"' in got[0].text
    assert got[0].text.endswith("data: [DONE]\n\n") == stream
    assert "error" not in got[0].text
    assert live.stats().blocks_used == 0


def test_the_end_does_not_wait_for_ever(start: Any) -> None:
    with start(drain_s=0.2, max_model_len=2048) as live:
        got: dict[bool, httpx.Response] = {}

        def ask(stream: bool) -> None:
            body = {"prompt": "a", "max_tokens": 2000, "ignore_eos": True, "stream": stream}
            got[stream] = live.post("/v1/completions", **body)

        threads = [threading.Thread(target=ask, args=(stream,)) for stream in (True, False)]
        for thread in threads:
            thread.start()
        live.wait_until(lambda s: s.running == 2)
        begin = time.monotonic()
        live.server.should_exit = True
        for thread in threads:
            thread.join(20)
        assert time.monotonic() - begin < 10
    assert got[False].status_code == 503
    assert got[False].json()["error"]["code"] == "shutting_down"
    assert got[True].text.endswith("data: [DONE]\n\n")
    assert '"code":"shutting_down"' in got[True].text
