"""A README's figures come from records, and `--check` finds every way in which they can drift."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra_bench import selection
from infra_bench.__main__ import main
from infra_bench.load import load

RECORD = "file=results/r.json"
TABLE = f"<!-- bench:table {RECORD} cases=64 columns=median,rate,ratio,error -->"
SPREAD = f"<!-- bench:table {RECORD} cases=8* metrics=TTFT* columns=ratio,spread -->"
PIVOT = f'<!-- bench:table {RECORD} cases="8 at*" rows=metric columns=implementation cell=ratio -->'
ROW = 'case="8 at once" implementation=continuous metric="output tokens"'
VALUE = f"<!-- bench:value {RECORD} {ROW} field=ratio -->"
PLOT = f"<!-- bench:plot {RECORD} out=results/p.svg kind=bars x=metric field=ratio cases=8* -->"
END = "<!-- /bench -->"


@pytest.fixture
def readme(served: Path) -> Path:
    """Write a README with one marker of each kind, beside the record."""
    served.rename(served.with_name("r.json"))
    path = served.parents[1] / "README.md"
    path.write_text(
        f"# Demo\n\n{TABLE}\n{END}\n\n{PIVOT}\n{END}\n{SPREAD}\n{END}\n\n"
        f"That is {VALUE}{END} faster.\n\n"
        f"{PLOT}\n{END}\n\nThe end.\n"
    )
    return path


def test_written_figures_are_those_of_the_record(readme: Path) -> None:
    assert main(["readme", str(readme)]) == 0
    text = readme.read_text()
    assert "That is " + VALUE + "4.00x" + END + " faster." in text
    assert "| output tokens | 1.00x | 4.00x |" in text
    assert "| TTFT p50 | 1.00x | 10.0x |" in text
    # The rounds' ratios are 2/0.2, 2/0.25 and 2.2/0.2: 10, 8 and 11.
    assert "| continuous | 10.0x | 9.00x – 10.5x |" in text
    assert "| implementation | median | rate | vs torch.matmul | error |" in text
    assert "| wrong | refused | refused | refused | – |" in text
    assert "absent: skipped, needs a GPU" in text
    assert "commit abc1234" in text
    assert "[record](results/r.json)" in text
    assert "![" in text
    assert "](results/p.svg)" in text
    assert text.startswith("# Demo\n")
    assert text.endswith("The end.\n")
    assert main(["readme", "--check", str(readme)]) == 0


def test_a_column_compares_with_any_implementation(readme: Path) -> None:
    columns = '"share,vs:fifo,vs:continuous"'
    marker = f"<!-- bench:table {RECORD} cases=8* metrics=TTFT* columns={columns} -->"
    readme.write_text(f"{marker}\n{END}\n")
    assert main(["readme", str(readme)]) == 0
    text = readme.read_text()
    assert "| implementation | of the peak | vs fifo | vs continuous |" in text
    assert "| continuous | – | 10.0x | 1.00x |" in text
    assert "| fifo | – | 1.00x | 0.10x |" in text


def test_a_comparison_with_nobody_names_who_is_there(
    readme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = f"<!-- bench:table {RECORD} cases=8* metrics=TTFT* columns=vs:nobody -->"
    readme.write_text(f"{marker}\n{END}\n")
    assert main(["readme", str(readme)]) == 1
    assert "has no 'nobody' to compare with: ['fifo', 'continuous']" in capsys.readouterr().err


def test_writing_again_changes_nothing(readme: Path) -> None:
    main(["readme", str(readme)])
    before = readme.read_bytes(), (readme.parent / "results/p.svg").read_bytes()
    main(["readme", str(readme)])
    assert (readme.read_bytes(), (readme.parent / "results/p.svg").read_bytes()) == before


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [("4.00x", "5.00x", "bench:"), ("refused | refused", "ok | ok", "README.md:3: bench:table")],
)
def test_an_edited_figure_is_drift(
    readme: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, line: str
) -> None:
    main(["readme", str(readme)])
    readme.write_text(readme.read_text().replace(old, new))
    edited = readme.read_text()
    assert main(["readme", "--check", str(readme)]) == 1
    said = capsys.readouterr().err
    assert line in said
    assert "differs from results/r.json" in said
    assert readme.read_text() == edited  # a check writes nothing


def test_another_record_under_the_same_name_is_drift_everywhere(
    readme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["readme", str(readme)])
    path = readme.parent / "results/r.json"
    path.write_text(path.read_text().replace("abc1234", "fff0000"))
    assert main(["readme", "--check", str(readme)]) == 1
    said = capsys.readouterr().err
    assert "README.md:3: bench:table" in said
    assert "bench:plot" in said


@pytest.mark.parametrize("fault", ["missing", "stale", "no digest"])
def test_a_plot_that_is_not_of_its_record_is_drift(
    readme: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    main(["readme", str(readme)])
    svg = readme.parent / "results/p.svg"
    if fault == "missing":
        svg.unlink()
    else:
        digest = svg.read_text().split("sha256:")[1][:64]
        svg.write_text(svg.read_text().replace(digest, "0" * 64 if fault == "stale" else ""))
    assert main(["readme", "--check", str(readme)]) == 1
    assert "plot results/p.svg is not drawn from its record" in capsys.readouterr().err
    assert main(["readme", str(readme)]) == 0
    assert main(["readme", "--check", str(readme)]) == 0


def test_the_same_plot_drawn_by_another_matplotlib_is_no_drift(readme: Path) -> None:
    main(["readme", str(readme)])
    svg = readme.parent / "results/p.svg"
    svg.write_text(svg.read_text().replace('width="576pt"', 'width="577pt"'))
    assert main(["readme", "--check", str(readme)]) == 0


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("table file=no.json", "no.json: no such file"),
        ("table", "names no file="),
        ("chart RECORD", "bench:chart is unknown"),
        ("table RECORD cases=65", "no case matches '65'; there are ['64', '8 at once']"),
        ('table RECORD cases="64|65"', "no case matches '65'"),
        ("table RECORD case=64", "unknown ['case']"),
        ("table RECORD columns=speed", "has no 'speed'"),
        ("table RECORD rows=case", "needs columns= and cell="),
        ("table RECORD rows=implementation columns=parts cell=ratio", "has no 'parts'"),
        (
            "table RECORD cases=8* rows=case columns=implementation cell=ratio",
            "several rows for case '8 at once', implementation 'fifo'",
        ),
        ("value RECORD case=64 field=ratio", "4 rows match"),
        (
            "value RECORD case=64 implementation=wrong field=median",
            "'wrong' is refused: there is no figure",
        ),
        ("value RECORD case=64 implementation=ours field=fast", "no field 'fast'"),
        ("plot RECORD out=p.svg kind=pie field=ratio", "kind is 'pie'"),
        ("plot RECORD out=p.svg kind=bars x=metric field=median cases=8*", "cannot share an axis"),
        ("plot RECORD out=p.svg kind=lines field=ratio cases=8*", "lines need numbers along x"),
        ('table file="results/r.json', "No closing quotation"),
        ("table results/r.json", "should read name=value"),
    ],
)
def test_a_marker_that_asks_for_nonsense(
    readme: Path, capsys: pytest.CaptureFixture[str], marker: str, message: str
) -> None:
    text = f"# Demo\n\n<!-- bench:{marker.replace('RECORD', RECORD)} -->\n{END}\n"
    readme.write_text(text)
    for arguments in (["readme", "--check", str(readme)], ["readme", str(readme)]):
        assert main(arguments) == 1
        said = capsys.readouterr().err
        assert message in said
        assert "README.md" in said
        assert "line 3" in said or ":3:" in said
        assert readme.read_text() == text


def test_of_many_cases_the_most_alike_are_named(
    readme: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "MOST_NAMED", 1)
    readme.write_text(f"<!-- bench:table {RECORD} cases=*65 -->\n{END}\n")
    assert main(["readme", "--check", str(readme)]) == 1
    assert "no case matches '*65'; of 2, the most alike are ['64']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{TABLE}\n", "line 1: bench:table has no <!-- /bench --> after it"),
        (f"x\n{TABLE}\n{VALUE}{END}\n{END}\n", "line 3: a marker begins inside another"),
    ],
)
def test_a_marker_that_does_not_end(
    readme: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    readme.write_text(text)
    assert main(["readme", "--check", str(readme)]) == 1
    assert message in capsys.readouterr().err


def test_markers_in_code_are_only_text(readme: Path) -> None:
    text = f"```\n{TABLE}\n```\n\n~~~html\n{END}\n~~~\n\nWrite `{VALUE}` where it should stand.\n"
    readme.write_text(text)
    assert main(["readme", str(readme)]) == 0
    assert readme.read_text() == text


def test_a_broken_record_is_named(readme: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (readme.parent / "results/r.json").write_text("{")
    assert main(["readme", "--check", str(readme)]) == 1
    assert "r.json: not a JSON record" in capsys.readouterr().err


def test_a_fault_in_one_file_does_not_stop_the_others(readme: Path) -> None:
    other = readme.with_name("OTHER.md")
    other.write_text(f"{VALUE}{END}\n")
    assert main(["readme", str(readme.with_name("none.md")), str(other)]) == 1
    assert "4.00x" in other.read_text()


def test_use_follows_a_newer_run_of_the_same_machine(
    readme: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = readme.parent / "results"
    slug = load(results / "r.json").machine["slug"]
    shutil.copy(results / "r.json", results / "other.json")
    data = json.loads((results / "r.json").read_text())
    elsewhere = json.loads(json.dumps(data))
    elsewhere["machine"]["slug"] = "another-machine"
    (results / "other.json").write_text(json.dumps(elsewhere))
    data["commit"] = "new0000"
    new = results / f"{slug}_2030-01-01_new0000.json"
    new.write_text(json.dumps(data))
    kept = VALUE.replace("r.json", "other.json")
    placeholder = VALUE.replace("r.json", "NAME.json")
    foreign = VALUE.replace("r.json", "another-machine_2026-01-01_abc.json")
    readme.write_text(f"{TABLE}\n{END}\n{kept}{END}\n{placeholder}{END}\n")
    assert main(["use", str(new), str(readme)]) == 0
    text = readme.read_text()
    assert text.count(f"file=results/{new.name}") == 2
    assert "commit new0000" in text
    assert kept in text
    assert "README.md:1: results/r.json -> results/" in capsys.readouterr().out
    readme.write_text(f"{foreign}{END}\n")
    assert main(["use", str(new), str(readme)]) == 1  # not there, and not this record's to replace
    assert foreign in readme.read_text()
    gpu, cpu = VALUE.replace("r.json", "GPU.json"), VALUE.replace("r.json", "CPU.json")
    readme.write_text(f"{gpu}{END}\n{cpu}{END}\n")
    assert main(["use", str(new), str(readme)]) == 1
    assert gpu in readme.read_text()
    assert cpu not in readme.read_text()


def test_show_prints_a_record(readme: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "infra_bench", "show", str(readme.parent / "results/r.json")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert done.returncode == 0
    assert "4.00x" in done.stdout
    assert main(["show", str(readme)]) == 1


def test_a_snippet_follows_its_source(tmp_path: Path) -> None:
    source = tmp_path / "source.py"
    source.write_text("import os\n\nclass A:\n    def f(self):\n        return 1\n\n    x = 2\n")
    page = tmp_path / "post.md"
    opening = '<!-- bench:snippet file=source.py from="def f" to="return" -->'
    page.write_text(f"Look:\n{opening}\n{END}\n")
    assert main(["readme", str(page)]) == 0
    assert f"{opening}\n\n```python\ndef f(self):\n    return 1\n```\n" in page.read_text()
    assert "class A" not in page.read_text()
    assert main(["readme", "--check", str(page)]) == 0
    source.write_text(source.read_text().replace("return 1", "return 3"))
    assert main(["readme", "--check", str(page)]) == 1


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ('file=nothing.py from="a" to="b"', "cannot read nothing.py"),
        ('file=source.py from="z" to="b"', "no line with 'z'"),
        ('file=source.py from="b" to="a"', "no line with 'a' after 'b'"),
        ("file=source.py", r"missing attributes ['from', 'to']"),
    ],
)
def test_a_snippet_that_cannot_be_cut_is_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], attributes: str, message: str
) -> None:
    (tmp_path / "source.py").write_text("a\nb\n")
    page = tmp_path / "post.md"
    page.write_text(f"<!-- bench:snippet {attributes} -->\n{END}\n")
    assert main(["readme", "--check", str(page)]) == 1
    printed = capsys.readouterr()
    assert message in printed.out + printed.err
