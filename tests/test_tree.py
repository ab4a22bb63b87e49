"""The rules that let each package leave this tree and live in a repository of its own."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "cuda-matmul-f32": "cuda_matmul_f32",
    "custom-gelu-ext": "custom_gelu_ext",
    "mini-llm-server": "mini_llm_server",
    "dist-playground": "dist_playground",
}


def imported(path: Path) -> set[str]:
    """Return the top-level names that a Python file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("folder", PACKAGES)
def test_library_code_imports_neither_the_harness_nor_a_sibling(folder: str) -> None:
    strangers = {"infra_bench", *PACKAGES.values()} - {PACKAGES[folder]}
    files = list((ROOT / folder / "src").rglob("*.py"))
    assert files
    for path in files:
        assert not imported(path) & strangers, path


@pytest.mark.parametrize("folder", PACKAGES)
def test_a_package_carries_what_a_repository_of_its_own_needs(folder: str) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE", "LOG.md", "benchmark.py", "tests"):
        assert (ROOT / folder / name).exists(), name
    assert (ROOT / folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_harness_knows_nothing_of_the_packages() -> None:
    for path in (ROOT / "infra_bench").glob("*.py"):
        text = path.read_text()
        for name in (*PACKAGES, *PACKAGES.values()):
            assert name not in text, path


def test_all_extensions_are_built_by_the_same_code() -> None:
    # No package may import another, so the file stands three times: a fix must reach all.
    copies = list(ROOT.glob("*/src/*/_build.py"))
    assert len(copies) == 3
    assert len({copy.read_bytes() for copy in copies}) == 1
