"""What a person at the terminal gets: lines of all ranks, one-line errors, runs that end."""

import json
import os
import re
import signal
import socket
import sys
import time

import pytest
import torch
from dist_playground.errors import UsageError
from dist_playground.plan import check
from dist_playground.settings import parse_settings
from dist_playground.world import World

TORCH = ["--impl", "torch"]
SMALL = ("--steps", "4", "--batch-size", "4", "--sequence-length", "16", "--device", "cpu")


def test_hello_from_every_rank_in_order(launch):
    done = launch("hello_rank.py", "--device", "cpu", ranks=3)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^\[rank (\d)\] of 3: pid", done.stdout, re.M) == ["0", "1", "2"]
    assert "all-reduce: 1 + 2 + 3 = 6 on every rank" in done.stdout


def test_each_rank_prints_its_lines_and_the_record_agrees(launch, tmp_path):
    file = tmp_path / "new folder" / "run.json"
    done = launch("fsdp.py", *SMALL, "--log-every", "3", "--json", str(file), ranks=2)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert re.findall(r"^\[rank (\d)\] .*pid", done.stdout, re.M) == ["0", "1"]
    assert "trains on rows 0 to 1" in done.stdout
    assert "trains on rows 2 to 3" in done.stdout
    assert re.findall(r"^\[rank (\d)\] median step", done.stdout, re.M) == ["0", "1"]
    lines = re.findall(r"^step +(\d+)/4  loss ([\d.]+)", done.stdout, re.M)
    assert [line[0] for line in lines] == ["3", "4"]

    record = json.loads(file.read_text())
    assert not list(file.parent.glob("*.tmp"))
    assert len(record["losses"]) == len(record["tokens_per_second"]) == 4
    for step, loss in lines:
        assert float(loss) == pytest.approx(record["losses"][int(step) - 1], abs=1e-4)
    # Two ranks hold half each: 4 bytes a weight, a gradient and two moments, and a step counter.
    for rank in record["ranks"]:
        assert rank["held_parameters"] == record["parameters"] / 2
        assert rank["state_bytes"] == pytest.approx(16 * record["parameters"] / 2, rel=1e-3)
        assert rank["peak_bytes"] > rank["state_bytes"]


def test_a_world_that_does_not_fit_ends_every_rank_at_once(launch):
    begin = time.monotonic()
    done = launch("ddp.py", *SMALL, "--mesh", "data=3", ranks=2)
    assert done.returncode != 0
    # torchrun ends the other rank when the first has failed: at least one was in time to speak.
    assert re.search(r"\[rank \d\] error: .* multiply to 3; start 3 ranks", done.stderr)
    assert "step" not in done.stdout
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("ddp", ["--mesh", "dta=2"], r"'dta=2' is not one of data, pipeline, context, tensor"),
        ("tensor_parallel", ["--sequence-length", "17"], r"17 .* 2 .* --sequence-length 18"),
        ("context_parallel", ["--sequence-length", "18"], r"18 .* 2 .* --sequence-length 20"),
        ("pipeline", ["--zero1"], r"leave out the axis tensor, fsdp.py and --zero1"),
        ("fsdp", ["--impl", "torch", "--mesh", "tensor=2"], r"--impl torch has one axis here"),
        ("ddp", ["--impl", "torch", "--zero1"], r"--impl torch has no --zero1 here"),
        ("single", ["--impl", "torch"], r"single.py has nothing parallel in it"),
        ("context_parallel", ["--impl", "torch"], r"no attention kernel for CPUs"),
        ("pipeline", ["--impl", "torch"], r"the 2 stages for 1f1b: use --accumulate 2 or more"),
        ("pipeline", [*TORCH, "--accumulate", "3"], r"16 does not divide by --accumulate 3"),
        ("pipeline", [*TORCH, "--model", "micro-tied"], r"no tied weights in a pipeline"),
        ("ddp", ["--graph"], r"--graph is for CUDA"),
        ("ddp", ["--impl", "torch", "--graph"], r"--graph"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anyone_waits(kind, options, says):
    world = World(0, 2, 0, torch.device("cpu"), launched=True)
    with pytest.raises(UsageError, match=says):
        check(kind, parse_settings("", options), world)


@pytest.mark.parametrize(
    ("model", "size", "says"),
    [
        ("tiny", 3, r"4 heads .* 3 tensor-parallel ranks: use 1 or 2 or 4"),
        ("tiny", 8, r"4 heads .* 8 tensor-parallel ranks: use 1 or 2 or 4"),
        ("small", 5, r"12 heads .* 5 tensor-parallel ranks: use 1 or 2 or 3 or 4 or 6 or 12"),
    ],
)
def test_heads_that_do_not_divide_are_refused(model, size, says):
    settings = parse_settings("", ["--model", model])
    world = World(0, size, 0, torch.device("cpu"), launched=True)
    with pytest.raises(UsageError, match=says):
        check("tensor_parallel", settings, world)


def test_more_stages_than_layers_are_refused():
    world = World(0, 5, 0, torch.device("cpu"), launched=True)
    with pytest.raises(UsageError, match="5 pipeline stages for 4 layers: use at most 4"):
        check("pipeline", parse_settings("", []), world)


def test_a_loss_that_is_not_finite_ends_the_run(launch):
    done = launch("ddp.py", *SMALL, "--learning-rate", "10", "--steps", "60")
    assert done.returncode == 1
    assert re.search(r"error: the loss is \S+ at step \d+: use a --learning-rate", done.stderr)
    assert "Traceback" not in done.stderr


def test_ranks_with_different_options_are_refused(launch, tmp_path):
    # What two hosts with two command lines would do: rank 1 gets another seed.
    script = tmp_path / "mixed.py"
    script.write_text(
        "import os, sys\n"
        "sys.argv += ['--seed', os.environ['RANK']]\n"
        "from dist_playground.script import run_script\n"
        "run_script('ddp', '')\n"
    )
    done = launch(str(script), *SMALL, ranks=2)
    assert done.returncode != 0
    assert "rank 0 has seed 0 and rank 1 has 1: start all ranks with the same" in done.stderr


def test_a_port_in_use_is_named(launch, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", port)
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        done = launch("ddp.py", *SMALL, "--timeout", "5")
    assert done.returncode == 1
    assert f"port {port} is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_ranks_that_never_come_end_the_run(launch, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, value in (
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", port),
        ("RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_RANK", "0"),
        ("LOCAL_WORLD_SIZE", "2"),
    ):
        monkeypatch.setenv(name, value)
    done = launch("ddp.py", *SMALL, "--timeout", "4", timeout=40)
    assert done.returncode == 1
    assert f"rank 0 of 2 could not meet the others at 127.0.0.1:{port} within 4 s" in done.stderr


def test_without_the_package_one_line_says_what_to_install(launch, tmp_path, monkeypatch):
    # None in sys.modules is how Python marks a module that cannot be imported.
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "sitecustomize.py").write_text("import sys\nsys.modules['dist_playground'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(shadow))
    done = launch("ddp.py", *SMALL)
    assert done.returncode == 1
    assert (
        done.stderr.strip().splitlines()[-1].endswith("run `pip install ./dist-playground` first")
    )
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("script", ["ddp.py", "fsdp.py", "tensor_parallel.py"])
def test_a_killed_rank_ends_the_run_in_time(start, script):
    options = (*SMALL, "--steps", "100000", "--log-every", "1", "--timeout", "20")
    with start(script, *options, ranks=2) as process:
        pids = {}
        for line in process.stdout:
            if found := re.match(r"\[rank (\d)\] .*pid (\d+)", line):
                pids[found[1]] = int(found[2])
            if line.startswith("step    3/"):
                break
        os.kill(pids["1"], signal.SIGKILL)
        begin = time.monotonic()
        _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert time.monotonic() - begin < 45  # torchrun gives the others 30 s after SIGTERM
    assert "SIGKILL" in errors
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc, which Linux has")
def test_peak_memory_is_this_process_and_not_its_parents(launch, tmp_path):
    # ru_maxrss would carry a big parent's size over exec; a run from here must not show it.
    ballast = bytearray(2 * 2**30)
    ballast[::4096] = b"x" * len(ballast[::4096])
    launch("single.py", *SMALL, "--json", str(tmp_path / "run.json"))
    peak = json.loads((tmp_path / "run.json").read_text())["ranks"][0]["peak_bytes"]
    assert 50 * 2**20 < peak < 1.5 * 2**30
    del ballast
