"""What an operator relies on: metrics, the key, request ids, and what the log says."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from mini_llm_server.api.auth import Auth
from mini_llm_server.api.logs import JSONLines
from prometheus_client.parser import text_string_to_metric_families

KEY = "sk-kitchen-1"
SECRET = "a sentence that no log and no metric may hold"


def samples(live: Any, **headers: str) -> dict[str, float]:
    """All samples of /metrics by name and labels, as Prometheus itself would parse them."""
    response = httpx.get(live.url + "/metrics", headers=headers)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain")
    return {
        sample.name + "".join(f",{value}" for value in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_metrics_count_what_happens(start: Any) -> None:
    with start(num_blocks=64) as live:
        before = samples(live)
        assert before["mini_llm_kv_blocks"] == 64
        assert before["mini_llm_output_tokens_total"] == 0
        live.complete("0123456789abcdef" * 3, max_tokens=11, n=1)
        live.complete("0123456789abcdef" * 3, max_tokens=11)  # finds the first one's blocks
        live.stream("/v1/completions", prompt="abc", max_tokens=5, ignore_eos=True)
        live.post("/v1/completions", prompt="abc", temperature=-1)
        httpx.get(live.url + "/no/such/page")
        live.wait_until_idle()
        after = samples(live)
        assert after["mini_llm_output_tokens_total"] == 27
        assert after["mini_llm_prompt_tokens_total"] == 48 + 48 + 3
        assert after["mini_llm_prefix_hit_tokens_total"] > 0
        assert after["mini_llm_requests_running"] == after["mini_llm_requests_waiting"] == 0
        assert after["mini_llm_kv_blocks_used"] == after["mini_llm_kv_usage_ratio"] == 0
        assert after["mini_llm_kv_blocks_cached"] > 0
        assert after["mini_llm_time_to_first_token_seconds_count"] == 3
        assert after["mini_llm_inter_token_latency_seconds_count"] == 27 - 3
        assert after["mini_llm_answer_duration_seconds_count"] == 3
        assert after["mini_llm_answers_total,length"] == 3
        assert after["mini_llm_http_requests_total,/v1/completions,200"] == 3
        assert after["mini_llm_http_requests_total,/v1/completions,400"] == 1
        assert after["mini_llm_http_requests_total,,404"] == 1  # a client's paths are no labels
        assert after["mini_llm_steps_total"] >= 27
        assert 0 < after["mini_llm_scheduling_seconds_total"] < after["mini_llm_step_seconds_total"]
        assert after["mini_llm_event_loop_lag_seconds_count"] > 0


def test_metrics_of_a_busy_server_and_of_clients_that_leave(start: Any) -> None:
    with start(num_blocks=128, max_num_seqs=1) as live:
        body = {"prompt": "a", "max_tokens": 2000, "ignore_eos": True}
        connections = [live.send("/v1/completions", **body) for _ in range(2)]
        live.wait_until(lambda s: s.running == 1 and s.waiting == 1 and s.blocks_used > 1)
        busy = samples(live)
        for connection in connections:
            connection.close()
        live.wait_until_idle()
        assert busy["mini_llm_requests_running"] == busy["mini_llm_requests_waiting"] == 1
        assert busy["mini_llm_kv_usage_ratio"] == busy["mini_llm_kv_blocks_used"] / 128 > 0
        limit = time.monotonic() + 5
        while samples(live).get("mini_llm_answers_total,none", 0) < 2:
            assert time.monotonic() < limit
            time.sleep(0.05)
        assert samples(live)["mini_llm_http_requests_total,/v1/completions,499"] == 2


@pytest.fixture
def guarded(start: Any) -> Any:
    with start(api_key=KEY) as live:
        yield live


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer wrong", "Bearer k\xfcche", f"Basic {KEY}", KEY, f"Bearer {KEY}x",
     f"Bearer {KEY[:-1]}", f"Bearer x {KEY}"],
)  # fmt: skip
def test_without_the_key_nothing_is_answered(guarded: Any, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    body = {"model": "dummy", "prompt": "a", "max_tokens": 1}
    for method, path in (
        ("POST", "/v1/completions"), ("POST", "/v1/chat/completions"), ("GET", "/v1/models"),
        ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/docs"), ("GET", "/no/such/page"),
        ("GET", "/health/"), ("GET", "//health"),
    ):  # fmt: skip
        content = json.dumps(body) if method == "POST" else None
        response = httpx.request(method, guarded.url + path, headers=headers, content=content)
        assert response.status_code == 401, path
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert KEY not in response.text
    assert httpx.get(guarded.url + "/health", headers=headers).status_code == 200


def test_with_the_key_everything_is(guarded: Any) -> None:
    for scheme in ("Bearer", "bearer"):
        headers = {"Authorization": f"{scheme} {KEY}".encode("latin-1")}
        body = {"model": "dummy", "prompt": "a", "max_tokens": 1}
        response = httpx.post(guarded.url + "/v1/completions", json=body, headers=headers)
        assert response.status_code == 200
        assert httpx.get(guarded.url + "/metrics", headers=headers).status_code == 200


def test_the_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key that is tried, of whatever length, reaches compare_digest as 32 bytes."""
    compared: list[tuple[int, int]] = []

    def watch(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr("mini_llm_server.api.auth.hmac.compare_digest", watch)

    async def app(*_: Any) -> None:
        raise AssertionError

    auth = Auth(app, KEY)
    tried = [b"", b"Bearer", b"Bearer " + b"x" * 5000, KEY.encode("latin-1")]
    for value in tried:
        assert not auth._allows({"type": "http", "headers": [(b"authorization", value)]})
    assert compared == [(32, 32)] * len(tried)


@pytest.mark.parametrize("stream", [True, False])
def test_one_line_for_each_request_with_its_id_and_without_its_text(
    live: Any, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    def lines_of(send: Callable[[], httpx.Response]) -> tuple[httpx.Response, dict[str, Any]]:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            response = send()
            limit = time.monotonic() + 5
            while not (found := [r for r in caplog.records if r.getMessage() == "request"]):
                assert time.monotonic() < limit
                time.sleep(0.01)
        (record,) = found
        line = JSONLines().format(record)
        assert SECRET not in line
        entry: dict[str, Any] = json.loads(line)
        assert response.headers["x-request-id"] == entry["request_id"]
        return response, entry

    body = {"prompt": SECRET, "max_tokens": 3, "stream": stream, "user": "u-1", "ignore_eos": True}
    _, entry = lines_of(lambda: live.post("/v1/completions", **body))
    assert (entry["status"], entry["user"], entry["stream"]) == (200, "u-1", stream)
    assert (entry["prompt_tokens"], entry["completion_tokens"]) == (len(SECRET), 3)
    assert entry["finish_reasons"] == ["length"]
    assert entry["seconds"] > 0
    assert len(entry["request_id"]) == 32

    def named(request_id: str) -> dict[str, Any]:
        url, headers = live.url + "/v1/models", {"X-Request-Id": request_id}
        return lines_of(lambda: httpx.get(url, headers=headers))[1]

    assert named("a-1:b.C_2")["request_id"] == "a-1:b.C_2"
    for odd in ("", "x" * 129, "a b", "a;b", '{"a":1}'):
        assert named(odd)["request_id"] != odd
    wrong = {"prompt": "a", "temperature": SECRET, "stop": {SECRET: 1}, SECRET: 1}
    _, entry = lines_of(lambda: live.post("/v1/completions", **wrong))
    assert entry["status"] == 400


def test_the_drain_refuses_what_is_new_and_finishes_what_runs(start: Any) -> None:
    with start(drain_s=20) as live:
        got: list[httpx.Response] = []
        body = {"prompt": "a", "max_tokens": 400, "ignore_eos": True, "n": 3}
        thread = threading.Thread(target=lambda: got.append(live.post("/v1/completions", **body)))
        thread.start()
        live.wait_until(lambda s: s.running == 3)
        live.server.should_exit = True
        limit = time.monotonic() + 5
        while True:
            try:
                httpx.get(live.url + "/health", timeout=5)
            except httpx.ConnectError:
                break
            assert time.monotonic() < limit
        assert thread.is_alive()
        thread.join(30)
    assert [choice["finish_reason"] for choice in got[0].json()["choices"]] == ["length"] * 3
