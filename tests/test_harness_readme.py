"""What the harness's README shows works as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

from infra_bench import __main__
from infra_bench.load import load

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "infra_bench/README.md").read_text()


def test_the_example_runs_and_refuses_what_it_says(tmp_path: Path) -> None:
    example = re.findall(r"```python\n(.*?)```", README, re.S)[0]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{example}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    (path,) = (tmp_path / "results").glob("*.json")
    statuses = [row.status for row in load(path).cases[0].rows]
    assert statuses == ["ok", "ok", "refused"]


def test_every_command_exists() -> None:
    commands = re.findall(r"python -m infra_bench (\w+)", README)
    assert sorted(set(commands)) == ["readme", "run", "show", "use"]
    for name in commands:
        assert f"{name} " in __main__._parser().format_help()


def test_its_markers_are_only_shown() -> None:
    assert __main__.main(["readme", "--check", str(ROOT / "infra_bench/README.md")]) == 0
