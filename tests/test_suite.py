"""`python -m infra_bench run`: one table and one report, past packages that fail."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOOD = """
import sys; from pathlib import Path
from infra_bench import Run, Row
name = Path(__file__).resolve().parent.name
print("measuring", name, *sys.argv[3:], flush=True)
run = Run(name, directory=Path(__file__).parent, version="1", device="cpu")
run.add("load", [Row("fifo", "tokens", "tok/s", [10.0, 10.0, 10.0], ours=False),
                 Row("continuous", "tokens", "tok/s", [{speed}] * 3, error=0.25)], baseline="fifo")
run.finish(out=sys.argv[2])
sys.exit(run.exit_code)
"""
WRONG = GOOD.replace("error=0.25", "error=float('nan')")
CRASH = "raise RuntimeError('no luck')"
SILENT = "print('nothing to measure')"


def package(folder: Path, program: str, speed: float = 30.0) -> Path:
    folder.mkdir()
    (folder / "benchmark.py").write_text(program.replace("{speed}", str(speed)))
    return folder


def run_suite(out: Path, *folders: Path, quick: bool = False) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "infra_bench", "run", *map(str, folders), "--out", str(out)]
    return subprocess.run(
        command + ["--quick"] * quick,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "INFRA_BENCH_COMMIT": "abc1234"},
        capture_output=True,
        text=True,
    )


def test_all_that_is_right(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folders = package(tmp_path / "one", GOOD), package(tmp_path / "two", GOOD, 50.0)
    done = run_suite(out, *folders, quick=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "measuring one --quick" in done.stdout
    assert done.stdout.index("measuring one") < done.stdout.index("measuring two")
    for name, ratio in (("one", "3.00x"), ("two", "5.00x")):
        (line,) = [each for each in done.stdout.splitlines() if each.startswith(f"│ {name} ")]
        assert ratio in line
        assert "fifo 10.0 tok/s" in line
        assert "2.5e-01" in line
        assert len(list((out / name).glob("*_abc1234.json"))) == 1
    report = (out / "report.md").read_text()
    assert "## one" in report
    assert "| continuous | 30.0 tok/s |" in report
    for target in (each.split(")")[0] for each in report.split("](")[1:]):
        assert (out / target).is_file()


def test_failing_packages_are_named_and_the_next_ones_run(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    faults = {
        package(tmp_path / "crashing", CRASH): "benchmark.py ended with status 1",
        package(tmp_path / "silent", SILENT): "benchmark.py wrote no record",
        package(tmp_path / "wrong", WRONG): "benchmark.py ended with status 1",
        empty: "benchmark.py is not there",
    }
    done = run_suite(tmp_path / "out", *faults, package(tmp_path / "good", GOOD))
    assert done.returncode == 1
    assert "RuntimeError: no luck" in done.stderr
    report = (tmp_path / "out/report.md").read_text()
    for folder, said in faults.items():
        assert re.search(f"failed: {folder.name}: .*{said}", done.stdout)
        assert re.search(f"## {folder.name}\n\nFailed: .*{said}", report)
    assert "its error is nan" in report
    assert any(line.startswith("│ good ") and "3.00x" in line for line in done.stdout.splitlines())


def test_a_second_run_reports_only_its_own_records(tmp_path: Path) -> None:
    out, folder = tmp_path / "out", package(tmp_path / "one", GOOD)
    assert run_suite(out, folder).returncode == 0
    package(tmp_path / "two", GOOD)
    (folder / "benchmark.py").write_text(GOOD.replace("{speed}", "70.0"))
    assert run_suite(out, folder).returncode == 0
    assert len(list((out / "one").glob("*.json"))) == 2
    report = (out / "report.md").read_text()
    assert "7.00x" in report
    assert "3.00x" not in report
