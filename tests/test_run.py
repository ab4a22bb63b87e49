"""A run: what it takes, what it refuses, and what its record says."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from infra_bench import Case, Implementation, Row, Run
from infra_bench.load import load
from infra_bench.machine import commit, slug

MakeCase = Callable[..., Case]
HONEST = Implementation("honest", torch.matmul)
WRONG = Implementation("wrong", torch.add)


def test_the_record_tells_the_run(served: Path, tmp_path: Path) -> None:
    record = load(served)
    assert re.fullmatch(r"[a-z0-9-]+_\d{4}-\d\d-\d\d_abc1234\.json", served.name)
    assert (record.package, record.version, record.commit) == ("demo", "0.1.0", "abc1234")
    assert record.versions["torch"] == str(torch.__version__)
    assert str(tmp_path) not in served.read_text()
    case = record.cases[0]
    assert [row.status for row in case.rows] == ["ok", "ok", "refused", "skipped"]
    assert case.rows[3].reason == "needs a GPU"
    assert case.seed is not None
    fifo, continuous = record.cases[1].rows[:2]
    assert continuous.ratio == pytest.approx(4.0)
    assert (fifo.ratio, fifo.rate) == (1.0, None)


def test_a_peak_gives_each_rate_its_share(
    run: Run, product: MakeCase, capsys: pytest.CaptureFixture[str]
) -> None:
    case = product(peak_flops=1e15, peak_bytes=1e12, bytes=1e4)
    found = run.measure(case, [HONEST], device="cpu", budget_s=0.01)
    assert found.peak == 1e15
    assert load(run.finish()).cases[0].peak == 1e15
    printed = capsys.readouterr().out
    assert "of peak" in printed
    assert re.search(r"\d\.\d%", printed)


def test_eager_and_graph_are_one_or_the_other(run: Run, product: MakeCase) -> None:
    with pytest.raises(ValueError, match="choose one"):
        run.measure(product(), [HONEST], device="cpu", graph=True, eager=True)


def test_lower_is_better_where_a_row_says_so(served: Path) -> None:
    assert load(served).cases[1].rows[3].ratio == pytest.approx(10.0)


def test_nothing_is_overwritten(run: Run, product: MakeCase, tmp_path: Path) -> None:
    run.measure(product(), [HONEST], device="cpu", budget_s=0.01)
    names = [run.finish(tmp_path / "out").name for _ in range(3)]
    stem = names[0].removesuffix(".json")
    assert names == [f"{stem}.json", f"{stem}-2.json", f"{stem}-3.json"]
    assert not list((tmp_path / "out").glob("*.tmp"))


@pytest.mark.parametrize(
    ("implementations", "code"),
    [
        ([HONEST], 0),
        ([HONEST, Implementation("wrong", torch.add, ours=False)], 0),
        ([HONEST, Implementation("absent", torch.add, skip="no GPU")], 0),
        ([HONEST, WRONG], 1),
    ],
    ids=["right", "a peer is wrong", "one is skipped", "ours is wrong"],
)
def test_exit_code(
    run: Run, product: MakeCase, implementations: list[Implementation], code: int
) -> None:
    run.measure(product(), implementations, device="cpu", budget_s=0.01)
    assert run.exit_code == code


def test_no_ratio_against_a_baseline_that_is_wrong(run: Run, product: MakeCase) -> None:
    result = run.measure(product(baseline="wrong"), [HONEST, WRONG], device="cpu", budget_s=0.01)
    assert result.rows[0].median is not None
    assert result.rows[0].ratio is None


@pytest.mark.parametrize("error", [float("nan"), float("inf")])
def test_a_row_whose_error_is_not_finite_is_refused(run: Run, error: float) -> None:
    result = run.add("x", [Row("a", "m", "s", [1.0], error=error)], baseline="a")
    assert result.rows[0].status == "refused"
    assert result.rows[0].samples == ()
    assert run.exit_code == 1


def test_a_row_with_a_nan_sample_is_refused(run: Run) -> None:
    result = run.add("x", [Row("a", "m", "s", [1.0, float("nan")])], baseline="a")
    assert (result.rows[0].status, result.rows[0].reason) == ("refused", "a sample is not finite")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Row("a", "m", "s", []), "no samples"),
        (Row("a", "m", "s", [], status="skipped"), "without a reason"),
        (Row("a", "m", "s", [1.0], status="fine"), "status is 'fine'"),
        (Row("b", "m", "s", [1.0]), r"baseline 'a' is none of \['b'\]"),
    ],
)
def test_a_row_that_makes_no_sense(run: Run, row: Row, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run.add("x", [row], baseline="a")


def test_a_case_that_makes_no_sense(run: Run, product: MakeCase) -> None:
    with pytest.raises(ValueError, match="baseline 'honest' is none of"):
        run.measure(product(), [WRONG], device="cpu")
    with pytest.raises(ValueError, match="more than once"):
        run.measure(product(), [HONEST, HONEST], device="cpu")
    with pytest.raises(ValueError, match="times 'cpu' and 'cuda'"):
        run.measure(product(), [HONEST], device="meta")
    with pytest.raises(ValueError, match="tolerance is nan"):
        product(tolerance=float("nan"))
    with pytest.raises(TypeError, match="return a tuple of tensors"):
        run.measure(product(inputs=lambda g: (1, 2)), [HONEST], device="cpu")
    low = product(reference=lambda a, b: (a @ b).float())
    with pytest.raises(TypeError, match="compute it in float64"):
        run.measure(low, [HONEST], device="cpu")
    run.measure(product(), [HONEST], device="cpu", budget_s=0.01)
    with pytest.raises(ValueError, match="in this run already"):
        run.measure(product(), [HONEST], device="cpu")


def test_a_run_without_a_case_leaves_no_record(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="nothing was measured"):
        run.finish()
    assert not (tmp_path / "results").exists()


def test_an_interrupt_leaves_no_record(run: Run, product: MakeCase, tmp_path: Path) -> None:
    def interrupted(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.measure(product(), [HONEST, Implementation("x", interrupted)], device="cpu")
    assert list(tmp_path.rglob("*")) == []


def test_output_in_a_pipe_has_no_control_codes(
    run: Run, product: MakeCase, capfd: pytest.CaptureFixture[str]
) -> None:
    run.measure(product(), [HONEST, WRONG], device="cpu", budget_s=0.01)
    run.finish()
    text = capfd.readouterr().out
    assert "\x1b" not in text
    assert "\r" not in text
    assert re.search(r"refused: product, wrong: relative error [\d.]+ is above", text)


@pytest.mark.parametrize(("samples", "noisy"), [([1.0, 1.0, 1.2], False), ([1.0, 1.5, 9.0], True)])
def test_quartiles_far_apart_are_called_noisy(
    run: Run, capfd: pytest.CaptureFixture[str], samples: list[float], noisy: bool
) -> None:
    run.add("x", [Row("a", "m", "s", samples)], baseline="a")
    run.finish()
    assert ("noisy: quartiles differ by more than 1.5x" in capfd.readouterr().out) is noisy


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_commit_and_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INFRA_BENCH_COMMIT", raising=False)
    package = tmp_path / "package"
    (package / "results").mkdir(parents=True)
    assert commit(package) == ("unknown", False)
    git(tmp_path, "init", "-q")
    for name in ("code.py", "README.md", "results/a.json"):
        (package / name).write_text("1")
    assert commit(package) == ("unknown", False)  # in a repository, but not of it
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "x")
    short, dirty = commit(package)
    assert re.fullmatch("[0-9a-f]{7,}", short)
    assert not dirty
    (package / "README.md").write_text("2")
    (package / "results/a.json").write_text("2")
    (package / "untracked.py").write_text("2")
    assert commit(package) == (short, False)
    (tmp_path / "elsewhere.py").write_text("1")
    git(tmp_path, "add", "elsewhere.py")
    assert commit(package) == (short, True)
    git(tmp_path, "commit", "-qm", "y")
    (package / "code.py").write_text("2")
    assert commit(package)[1]
    monkeypatch.setenv("INFRA_BENCH_COMMIT", "fedcba9-dirty")
    assert commit(package) == ("fedcba9", True)


@pytest.mark.parametrize(
    ("name", "count", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 1, "h100-80gb-hbm3"),
        ("NVIDIA H100 80GB HBM3", 2, "2x-h100-80gb-hbm3"),
        ("Intel(R) Xeon(R) Platinum 8480C CPU @ 2.00GHz", 1, "intel-xeon-platinum-8480c"),
        ("AMD Ryzen 7 5800X 8-Core Processor", 1, "amd-ryzen-7-5800x"),
        ("Apple M2 Pro", 1, "apple-m2-pro"),
        ("", 1, "unknown"),
    ],
)
def test_slug(name: str, count: int, expected: str) -> None:
    assert slug(name, count) == expected


def test_the_command_has_no_folders(
    run: Run, product: MakeCase, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        sys, "argv", [str(tmp_path / "benchmark.py"), "--out", str(tmp_path), f"--x={tmp_path}"]
    )
    run.measure(product(), [HONEST], device="cpu", budget_s=0.01)
    data = json.loads(run.finish().read_text())
    assert data["command"] == f"python benchmark.py --out {tmp_path.name} --x={tmp_path.name}"


@pytest.mark.parametrize("missing", ["rich", "numpy"])
def test_a_missing_package_is_named_in_one_line(missing: str, tmp_path: Path) -> None:
    program = (
        "import importlib.util as u, sys\n"
        "find = u.find_spec\n"
        f"u.find_spec = lambda n, *a: None if n == {missing!r} else find(n, *a)\n"
        "import infra_bench\n"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"infra_bench needs {missing}: python -m pip install {missing}\n"


def test_importing_the_harness_does_not_import_torch_or_matplotlib() -> None:
    program = "import sys, infra_bench; print({'torch', 'matplotlib'} & set(sys.modules))"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.stdout == "set()\n"
