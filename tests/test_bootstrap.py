"""bootstrap.py on machines it was not written on: each problem is one line, no traceback."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bootstrap() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bootstrap_under_test", ROOT / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def clone(folder: Path) -> Path:
    """Copy the files that git tracks, as a stranger's clone would have them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    return folder


def run(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "bootstrap.py"],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_python_too_old(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap.sys, "version_info", (3, 9, 18))
    with pytest.raises(bootstrap.StopError, match=r"too old: 3\.10 or newer"):
        bootstrap.check_host()


def test_no_venv_module(bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(bootstrap.StopError, match="no venv module"):
        bootstrap.check_host()


def test_no_disk_space(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = namedtuple("usage", "total used free")(2**40, 2**40, 2**29)
    monkeypatch.setattr(bootstrap.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(bootstrap, "PYTHON", tmp_path / "none")
    with pytest.raises(bootstrap.StopError, match=r"0\.5 GiB are free"):
        bootstrap.install()


def test_a_full_disk_and_a_dead_network_are_told_apart(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ROOT / ".venv" / "pretended.log"
    monkeypatch.setattr(bootstrap, "LOG", log)
    try:
        log.write_text("OSError: [Errno 28] No space left on device\n")
        assert "the disk is full while installing x" in bootstrap.explain("installing x", 0)
        log.write_text("Retrying ... NewConnectionError: Network is unreachable\n")
        assert "could not be reached" in bootstrap.explain("installing x", 0)
        log.write_text("b.cpp:3: error: expected ';'\nninja: build stopped\n")
        assert bootstrap.explain("compiling x", 0).startswith(
            "compiling x failed: b.cpp:3: error: expected ';'"
        )
    finally:
        log.unlink()


def test_no_nvidia_driver_means_no_cuda_build(
    bootstrap: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps: list[list[str]] = []
    monkeypatch.setattr(bootstrap, "has_nvidia_driver", lambda: False)
    monkeypatch.setattr(bootstrap, "run_quietly", lambda command: False)  # no local wheel
    monkeypatch.setattr(bootstrap, "step", lambda title, command: steps.append(command))
    monkeypatch.setattr(bootstrap.sys, "platform", "linux")
    bootstrap.install_torch(["pip", "install"], bootstrap.torch_kind())
    assert steps[-1][-3:] == ["--torch-backend", "cpu", bootstrap.TORCH]


def test_no_compiler_is_one_line(tmp_path: Path) -> None:
    done = run(ROOT, PATH=str(tmp_path), CXX="c++")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no C++ compiler (c++) was found" in done.stderr


def test_nothing_changed_means_nothing_done() -> None:
    if not (ROOT / ".venv" / "bootstrap.json").exists():
        pytest.skip("this environment was not made by bootstrap.py")
    done = run(ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_index_out_of_reach_is_one_line(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9/simple"
    done = run(
        clone(tmp_path),
        PIP_CONFIG_FILE=os.devnull,
        PIP_FIND_LINKS="",
        PIP_RETRIES="0",
        PIP_INDEX_URL=nowhere,
        PIP_EXTRA_INDEX_URL="",
    )
    assert done.returncode == 1
    assert "the package index could not be reached" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["installing torch", "installing the harness"])
def test_killed_half_way_it_recovers(tmp_path: Path, victim: str) -> None:
    folder = clone(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "bootstrap.py"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    seen = b""
    while victim.encode() not in seen:
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, seen.decode()
        seen += byte
    time.sleep(6)  # deep in pip's work
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    done = run(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    check = "import torch, cuda_matmul_f32, custom_gelu_ext, mini_llm_server, dist_playground"
    subprocess.run([folder / ".venv/bin/python", "-c", check], check=True)
    again = run(folder)
    assert (again.returncode, again.stdout) == (0, "")
