"""What the documents link to, name and tell to type exists: files, anchors, tests, options."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (
    *("cuda-matmul-f32", "custom-gelu-ext", "mini-llm-server", "dist-playground"),
    *("docs", "infra_bench", "tests"),
)
FILES = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()]
PAGES = [ROOT / "README.md", *ROOT.glob("*/README.md"), *sorted((ROOT / "docs").rglob("*.md"))]
TAUGHT = [page for page in PAGES if page.parent.name in ("plan", "interview")]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SOURCE = re.compile(r"[\w./-]+\.(py|h|cuh|cu|cpp|md|yaml)")
OWN = "notes/"  # where the plan keeps what a learner makes
RANKS = "two"  # a shell function of the pages: torchrun with two ranks
DEFAULT_MARKS = "not slow and not gpu and not multigpu"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Return the names that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.M)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = INLINE.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))
    for link in LINK.findall(text):
        if ":" in link:  # to the outside
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", TAUGHT, ids=name_of)
def test_files_named_in_code_exist(page: Path) -> None:
    known = [f"/{name_of(path)}" for path in FILES]
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for code in INLINE.findall(text):
        if SOURCE.fullmatch(code) and not code.startswith(OWN):
            assert any(path.endswith(f"/{code}") for path in known), code


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every command on a page, without variables set in front of it."""
    text = page.read_text(encoding="utf-8")
    lines = INLINE.findall(FENCE.sub("", text))
    for language, block in FENCE.findall(text):
        if language == "bash":
            lines += block.replace("\\\n", " ").splitlines()
    for line in lines:
        words = line.split()
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if words and words[0] in ("pytest", "python", "torchrun", RANKS, "mini-llm-server"):
            yield shlex.split(line[line.index(words[0]) :], comments=True)


def sources_of_options(words: list[str]) -> tuple[list[Path], list[str]]:
    """Return the files that declare a Python program's options, and the words that follow it."""
    if words[:2] == ["python", "-m"]:
        module = ROOT / words[2].replace(".", "/")
        if not module.exists():  # of a package in src/
            (module,) = ROOT.glob(f"*/src/{words[2].replace('.', '/')}.py")
        return [module / "__main__.py" if module.is_dir() else module], words[3:]
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    script = ROOT / words[at]
    assert script.exists(), words[at]
    shared = list(script.parent.glob("src/*/settings.py"))
    return [script, *(shared if "run_script" in script.read_text() else [])], words[at + 1 :]


def rungs(device: str) -> set[str]:
    folder = ROOT / "cuda-matmul-f32/src/cuda_matmul_f32/csrc" / device
    return {path.stem.split("_", 1)[1] for path in folder.glob("[0-9][0-9]_*")}


def values(words: list[str], option: str) -> list[str]:
    """Return the words between an option and the next one."""
    if option not in words:
        return []
    rest = words[words.index(option) + 1 :]
    end = next((i for i, word in enumerate(rest) if word.startswith("-")), len(rest))
    return rest[:end]


@pytest.mark.parametrize("page", TAUGHT, ids=name_of)
def test_programs_have_the_options_that_they_are_given(page: Path) -> None:
    for words in commands(page):
        if words[0] in ("pytest", "mini-llm-server") or words[1] == "-c":
            continue
        sources, arguments = sources_of_options(words)
        declared = "".join(path.read_text(encoding="utf-8") for path in sources)
        for word in arguments:
            assert not word.startswith("--") or f'"{word}"' in declared, words
        device = "cpu" if "cpu" in values(arguments, "--device") else "cuda"
        assert set(values(arguments, "--kernels")) <= rungs(device), words


def test_the_server_has_the_options_that_it_is_given() -> None:
    typer = pytest.importorskip("typer")
    from mini_llm_server.cli import app

    known = typer.main.get_command(app).commands
    found = [words for page in TAUGHT for words in commands(page) if words[0] == "mini-llm-server"]
    assert found
    for _, name, *arguments in found:
        options = {
            o for p in known[name].params for o in (*p.opts, *getattr(p, "secondary_opts", ()))
        }
        assert {word for word in arguments if word.startswith("--")} <= options, (name, arguments)


COLLECT = """
import json, sys, pytest
class Collected:
    def pytest_collection_finish(self, session):
        root = session.config.rootpath
        items = [
            [f"{each.path.relative_to(root).as_posix()}::{each.name}",
             [mark.name for mark in each.iter_markers()]]
            for each in session.items
        ]
        open(sys.argv[1], "w").write(json.dumps(items))
options = ["--collect-only", "-q", "-c", "pyproject.toml", "-o", "addopts=--import-mode=importlib"]
sys.exit(pytest.main([*options, *sys.argv[2:]], plugins=[Collected()]))
"""


def collect(paths: list[str], into: Path) -> list[tuple[str, set[str]]]:
    """Return every test in the paths with its marks; a GPU's rungs also where there is no GPU."""
    line = [sys.executable, "-c", COLLECT, str(into), *paths]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    items = [(name, set(marks)) for name, marks in json.loads(into.read_text())]
    for name, marks in list(items):
        if "[cpu-naive" in name:
            items += [
                (name.replace("cpu-naive", f"cuda-{rung}"), {*marks, "gpu"})
                for rung in rungs("cuda")
            ]
    return items


def holds(expression: str, is_true: dict[str, bool]) -> bool:
    """Evaluate an expression of -k or -m."""
    python = re.sub(
        r"[\w\-\[\].:/]+",
        lambda word: word[0] if word[0] in ("and", "or", "not") else str(is_true[word[0]]),
        expression,
    )
    return bool(eval(python)) if python else True


def names_in(expression: str) -> list[str]:
    return re.findall(r"[\w\-\[\].:/]+", expression)


def test_every_pytest_command_selects_a_test(tmp_path: Path) -> None:
    found = [words[1:] for page in TAUGHT for words in commands(page) if words[0] == "pytest"]
    found += [
        words[words.index("pytest") + 1 :]
        for page in TAUGHT
        for line in INLINE.findall(page.read_text(encoding="utf-8"))
        if "python -m pytest" in line and (words := shlex.split(line))
    ]
    assert len(found) > 40
    wanted = []
    for arguments in found:
        options = {"-k": "", "-m": DEFAULT_MARKS}
        paths, words = [], iter(arguments)
        for word in words:
            if word in options:
                options[word] = next(words)
            elif word != "-x":
                paths.append(word)
        assert paths, arguments
        assert all((ROOT / path).exists() for path in paths), arguments
        wanted.append((paths, options["-k"], options["-m"]))
    files = sorted({path for paths, _, _ in wanted for path in paths})
    folders = [path for path in files if (ROOT / path).is_dir()]
    files = folders + [path for path in files if not path.startswith(tuple(folders))]
    items = collect(files, tmp_path / "items.json")
    for paths, keywords, marks in wanted:
        selected = [
            name
            for name, has in items
            if name.startswith(tuple(paths))
            and holds(marks, {each: each in has for each in names_in(marks)})
            and holds(keywords, {w: w.lower() in name.lower() for w in names_in(keywords)})
        ]
        assert selected, (paths, keywords, marks)
