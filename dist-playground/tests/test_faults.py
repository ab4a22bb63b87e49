"""A rank is killed, a network cable is cut: the run goes on and ends with the same bits.

Restarting is torchrun's affair (or, for a whole host, of whoever started it: a loop here, systemd
or SLURM elsewhere). What is tested is that nothing hangs, and that the resumed run equals an
undisturbed one bit for bit: same losses, same gradient norms.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from launching import PACKAGE, end

STEPS = 60
OPTIONS = ["--device", "cpu", "--model", "micro", "--batch-size", "8", "--sequence-length", "16"]
OPTIONS += ["--steps", str(STEPS), "--log-every", "1", "--checkpoint-every", "10"]
# A rank that was killed leaves its address in the agent's store, where the next attempt would
# look for it: every attempt gets a store of its own.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def command(script: str, folder: Path, *launcher: str, timeout: int = 10) -> list[str]:
    run = [sys.executable, "-m", "torch.distributed.run", *launcher, str(PACKAGE / script)]
    outputs = ["--checkpoint", str(folder / "checkpoints"), "--json", str(folder / "run.json")]
    return [*run, *OPTIONS, *outputs, "--timeout", str(timeout)]


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """undisturbed(script): the record of a run on two ranks that nothing happens to."""
    done: dict = {}

    def get(script: str) -> dict:
        if script not in done:
            folder = tmp_path_factory.mktemp("undisturbed")
            line = command(script, folder, "--standalone", "--nproc-per-node=2")
            subprocess.run(line, env=ENVIRONMENT, check=True, timeout=100, capture_output=True)
            done[script] = record(folder)
        return done[script]

    return get


def assert_same_bits(ours: dict, reference: dict) -> None:
    assert len(reference["losses"]) == STEPS
    assert reference["first_step"] == 0
    assert ours["first_step"] > 0
    assert ours["losses"] == reference["losses"]
    assert ours["gradient_norms"] == reference["gradient_norms"]


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("script", ["fsdp.py", "tensor_parallel.py"])
def test_a_killed_rank_is_restarted_and_nothing_is_lost(undisturbed, tmp_path, script):
    line = command(script, tmp_path, "--standalone", "--nproc-per-node=2", "--max-restarts=2")
    process = subprocess.Popen(
        line, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines, pids, killed = [], [], False
    try:
        assert process.stdout is not None
        for text in process.stdout:
            lines.append(text)
            if found := re.match(r"\[rank \d\] .*pid (\d+)", text):
                pids.append(int(found[1]))
            if text.startswith(f"step   25/{STEPS}") and not killed:
                os.kill(pids[1], signal.SIGKILL)
                killed = True
        assert process.wait(60) == 0, "".join(lines)
    finally:
        end(process)
    assert killed
    assert "going on from" in "".join(lines)
    assert_same_bits(record(tmp_path), undisturbed(script))


NAMES = ("dpa", "dpb")
ADDRESSES = ("10.231.7.1", "10.231.7.2")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


@contextmanager
def two_hosts() -> Iterator[None]:
    """Two network namespaces with a cable between them."""
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    try:
        for name in NAMES:
            ip("netns", "add", name)
        a, b = NAMES
        ip("link", "add", f"{a}0", "netns", a, "type", "veth", "peer", "name", f"{b}0", "netns", b)
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", f"{name}0")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", f"{name}0", "up")
        yield
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def may_make_hosts() -> bool:
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("ip"):
        return False
    try:
        with two_hosts():
            return True
    except subprocess.CalledProcessError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_a_cut_cable_between_two_hosts_is_survived(undisturbed, tmp_path):
    if not may_make_hosts():
        pytest.skip("network namespaces need root and iproute2")
    expected = undisturbed("ddp.py")
    with two_hosts():
        processes = [start_host(number, tmp_path) for number in (0, 1)]
        try:
            wait_for(tmp_path / "host0.log", f"step   25/{STEPS}", 60)
            ip("-n", NAMES[1], "link", "set", f"{NAMES[1]}0", "down")
            wait_for(tmp_path / "host0.log", "attempt 2", 90)
            ip("-n", NAMES[1], "link", "set", f"{NAMES[1]}0", "up")
            for process in processes:
                assert process.wait(120) == 0, (tmp_path / "host0.log").read_text()
        finally:
            for process in processes:
                end_group(process)
    assert "going on from" in (tmp_path / "host0.log").read_text()
    assert_same_bits(record(tmp_path), expected)


def start_host(number: int, folder: Path) -> subprocess.Popen:
    """torchrun on one host, started again when it fails."""
    launcher = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=cable"]
    launcher += [f"--rdzv-endpoint={ADDRESSES[0]}:29511", f"--local-addr={ADDRESSES[number]}"]
    launcher += [f"--rdzv-conf=is_host={1 - number},join_timeout=60,read_timeout=8"]
    line = " ".join(command("ddp.py", folder, *launcher, timeout=6))
    loop = (
        f'for n in 1 2 3 4 5 6 7 8; do echo "attempt $n"; {line} && exit 0; sleep 1; done; exit 1'
    )
    inside = ["ip", "netns", "exec", NAMES[number], "unshare", "--uts", "sh", "-c"]
    log = (folder / f"host{number}.log").open("w")
    return subprocess.Popen(
        [*inside, f"hostname {NAMES[number]}; {loop}"],
        env={**ENVIRONMENT, "GLOO_SOCKET_IFNAME": f"{NAMES[number]}0", "PYTHONUNBUFFERED": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def end_group(process: subprocess.Popen) -> None:
    """The loop, torchrun and the ranks."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait(10)


def wait_for(log: Path, text: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while text not in log.read_text():
        assert time.monotonic() < deadline, f"no {text!r} within {seconds} s:\n{log.read_text()}"
        time.sleep(0.02)
