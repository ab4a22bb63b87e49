"""Name a missing package in one line with the command that installs it."""

from importlib.util import find_spec


def need(*names: str) -> None:
    """Exit with one line that says how to install whichever of `names` is not importable."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"infra_bench needs {' and '.join(missing)}: python -m pip install {' '.join(missing)}"
        )
