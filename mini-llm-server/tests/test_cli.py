"""The command line, as its own process: what it prints, refuses, serves and logs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from mini_llm_server.cli import app
from typer.testing import CliRunner, Result

SECRET = "a sentence that no log may hold"
README = Path(__file__).parents[1] / "README.md"


def run(*arguments: str) -> Result:
    """Run a command that ends by itself, in this process: importing torch takes seconds."""
    return CliRunner().invoke(app, arguments)


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run `mini-llm-server serve` on a free port; stdout and stderr go to files in the folder."""
    out, err = folder / "out", folder / "err"
    command = [sys.executable, "-m", "mini_llm_server.cli", "serve", "--port", "0", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with out.open("wb") as to_out, err.open("wb") as to_err:
        process = subprocess.Popen(command, stdout=to_out, stderr=to_err, env=environment)
    try:
        limit = time.monotonic() + 90
        while not (found := re.search(r"^ready in .*: (http://\S+)", out.read_text(), re.M)):
            assert process.poll() is None, err.read_text()
            assert time.monotonic() < limit, "it was not ready within 90 s"
            time.sleep(0.05)
        yield found[1], process
    finally:
        process.kill()
        process.wait()


def curl(command: str) -> str:
    """Run a curl line as a shell does; it has to answer with status 200."""
    assert command.startswith("curl ")
    line = command.replace("curl ", "curl --fail-with-body --silent --show-error --max-time 60 ", 1)
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@needs_curl
def test_serve_prints_a_curl_line_that_works_and_ends_when_asked(tmp_path: Path) -> None:
    with serving(tmp_path, "--model", "dummy", "--num-blocks", "64") as (url, process):
        lines = (tmp_path / "out").read_text().splitlines()
        assert any("64 blocks" in line for line in lines)
        (line,) = [each.strip() for each in lines if each.strip().startswith("curl")]
        assert url in line
        assert curl(line).endswith("data: [DONE]\n\n")
        assert url.startswith("http://127.0.0.1:")  # nobody else's machine can reach it

        body = {"model": "dummy", "prompt": SECRET, "max_tokens": 4, "user": "user-7"}
        assert httpx.post(f"{url}/v1/completions", json=body).status_code == 200
        wrong = {**body, "stop": {SECRET: 1}, "temperature": SECRET}
        assert httpx.post(f"{url}/v1/completions", json=wrong).status_code == 400
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, -signal.SIGTERM)

    log = (tmp_path / "err").read_text()
    assert SECRET not in log
    entries = [json.loads(each) for each in log.splitlines()]
    requests = [each for each in entries if each["message"] == "request"]
    assert [each["status"] for each in requests] == [200, 200, 400]
    assert requests[1]["user"] == "user-7"
    assert requests[1]["prompt_tokens"] == len(SECRET)
    assert requests[1]["completion_tokens"] == 4
    assert requests[2]["param"] in ("stop", "temperature")


def test_ctrl_c_is_no_error(tmp_path: Path) -> None:
    with serving(tmp_path, "--model", "dummy") as (_, process):
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    assert "Traceback" not in (tmp_path / "err").read_text()


def test_a_port_in_use_is_known_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "--model", "dummy", "--port", str(port))
    assert done.exit_code == 1
    assert f"127.0.0.1:{port}" in done.stderr
    assert "--port" in done.stderr
    assert "loading" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "gpt-9"], ["gpt-9", "smollm2", "dummy"]),
        (["--host", "no.such.host.invalid"], ["no.such.host.invalid"]),
        (["--num-blocks", "0"], ["num_blocks", "0"]),
        (["--block-size", "-1"], ["block_size", "-1"]),
        (["--max-num-seqs", "600"], ["600", "512"]),
        (["--max-waiting", "0"], ["max_waiting", "0"]),
        (["--max-model-len", "5000"], ["5000", "2048"]),
        (["--device", "toaster"], ["toaster"]),
        (["--device", "meta"], ["meta"]),
        (["--device", "cuda:99"], ["cuda:99"]),
        (["--device", "cpu", "--num-blocks", str(10**11)], ["memory", "--num-blocks"]),
    ],
)
def test_what_cannot_be_served_is_one_clear_line(arguments: list[str], words: list[str]) -> None:
    model = [] if "--model" in arguments else ["--model", "dummy"]
    done = run("serve", "--port", "0", *model, *arguments)
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)  # anything else would be a traceback
    assert len(done.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in done.stderr


def test_options_are_checked_by_name() -> None:
    done = run("serve", "--scheduler", "random")
    assert done.exit_code == 2
    assert "random" in done.stderr


def test_models_are_listed() -> None:
    done = run("models")
    assert done.exit_code == 0
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names == ["smollm2", "dummy", "FOLDER", "ORG/NAME"]


def test_a_key_from_the_environment_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINI_LLM_API_KEY", "sk-1")
    with serving(tmp_path, "--model", "dummy") as (url, process):
        assert httpx.get(f"{url}/v1/models").status_code == 401
        headers = {"Authorization": "Bearer sk-1"}
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
        out = (tmp_path / "out").read_text()
        assert "sk-1" not in out + (tmp_path / "err").read_text()
        assert "$MINI_LLM_API_KEY" in out  # the printed curl line works where the key is set
        (line,) = [each.strip() for each in out.splitlines() if each.strip().startswith("curl")]
        if shutil.which("curl"):
            assert curl(line).endswith("data: [DONE]\n\n")
        done = run("bench", "--url", url, "--requests", "2", "--output-tokens", "4")
        assert done.exit_code == 0, done.stderr
        process.send_signal(signal.SIGTERM)
        process.wait(10)


@pytest.mark.parametrize(
    ("host", "key", "warned"),
    [("127.0.0.1", False, False), ("0.0.0.0", False, True), ("0.0.0.0", True, False)],
)
def test_open_without_a_key_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, key: bool, warned: bool
) -> None:
    if key:
        monkeypatch.setenv("MINI_LLM_API_KEY", "sk-1")
    with serving(tmp_path, "--model", "dummy", "--host", host):
        err = (tmp_path / "err").read_text()
    assert ("can be reached from other machines" in err) == warned


@pytest.mark.parametrize("key", ["", "two words", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    done = run("serve", "--model", "dummy", "--port", "0", "--api-key", key)
    assert done.exit_code == 1
    assert "API key" in done.stderr


def test_bench_measures_a_server_in_both_loops(tmp_path: Path) -> None:
    with serving(tmp_path, "--model", "dummy") as (url, _):
        for extra in (["--clients", "3"], ["--rate", "20"]):
            done = run("bench", "--url", url + "/v1", "--requests", "6", *extra)
            assert done.exit_code == 0, done.stderr
            assert "6 of 6" in done.stdout
            for word in ("output tokens", "TTFT p99", "ITL p50", "latency p50"):
                assert word in done.stdout
        done = run("bench", "--url", url, "--prompt-words", "5000", "--requests", "2")
        assert done.exit_code == 1
        assert "2 requests failed" in done.stderr
        assert "context" in done.stderr or "limit" in done.stderr


def test_bench_without_a_server_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = run("bench", "--url", f"http://127.0.0.1:{port}")
    assert done.exit_code == 1
    assert len(done.stderr.strip().splitlines()) == 1


def test_chat_answers_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "Hello\n/help\n\n/reset\nHello\n/exit\nnever read\n"
    arguments = ["chat", "--model", "dummy", "--temperature", "0", "--max-tokens", "8"]
    done = CliRunner().invoke(app, arguments, input=lines)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("/reset forgets") == 2  # at the start, and for /help
    first, second = done.stdout.split("(forgotten)")
    answer = first.rsplit("stops an answer\n", 2)[1].split("> ")[1].strip()
    assert answer
    assert answer in second  # greedy: the same question is answered alike when all is forgotten
    assert CliRunner().invoke(app, arguments, input="").exit_code == 0  # Ctrl-D


def readme_commands() -> list[str]:
    """The README's curl commands, one string each."""
    blocks = re.findall(r"^```bash\n(.*?)^```", README.read_text(), re.M | re.S)
    commands = [part for block in blocks for part in re.split(r"^(?=curl )", block, flags=re.M)]
    return [command.strip() for command in commands if command.startswith("curl ")]


@pytest.mark.parametrize("model", ["dummy", pytest.param("smollm2", marks=pytest.mark.slow)])
def test_the_readme_s_python_works(tmp_path: Path, model: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    assert len(blocks) >= 2
    with serving(tmp_path, "--model", model) as (url, _):
        for block in blocks:
            code = block.replace("http://127.0.0.1:8000", url).replace('"smollm2"', f'"{model}"')
            code = code.replace("LLM()", f'LLM("{model}")')
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, timeout=90
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout.strip()
            if model == "smollm2" and "capital" in block:
                assert "Paris" in done.stdout
            if model == "smollm2" and "json_schema" in block:
                assert json.loads(done.stdout).keys() == {"city", "country"}


@needs_curl
@pytest.mark.parametrize("model", ["dummy", pytest.param("smollm2", marks=pytest.mark.slow)])
def test_the_readme_s_curl_lines_work(tmp_path: Path, model: str) -> None:
    commands = readme_commands()
    assert len(commands) >= 4
    with serving(tmp_path, "--model", model) as (url, _):
        for command in commands:
            assert "http://127.0.0.1:8000/" in command  # the default, where a reader's server is
            printed = command.replace("http://127.0.0.1:8000", url)
            answer = curl(printed.replace('"smollm2"', f'"{model}"'))
            for country, city in (("Japan", "Tokyo"), ("France", "Paris")):
                if model == "smollm2" and f"capital of {country}" in command:
                    assert city in answer
