"""Records survive a round trip, are written whole, and are refused when they are broken."""

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra_bench import Record, RecordError, record
from infra_bench.load import load
from infra_bench.record import save


def test_round_trip(served: Path, tmp_path: Path) -> None:
    first = load(served)
    again = load(save(first, tmp_path / "again", "copy"))
    assert again == first
    assert again.path == tmp_path / "again" / "copy.json"


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema=2), "schema is 2; this harness reads 1"),
        (lambda d: d.pop("schema"), "schema is None"),
        (lambda d: d.pop("commit"), r"record: missing fields \['commit'\]"),
        (lambda d: d.update(extra=1), r"unknown fields \['extra'\]"),
        (lambda d: d.update(dirty="no"), "record.dirty is 'no'; bool is meant"),
        (lambda d: d["machine"].pop("slug"), r"machine: missing fields \['slug'\]"),
        (lambda d: d["machine"].update(gpu={"name": "x"}), r"machine.gpu: missing fields"),
        (lambda d: d["cases"].append(3), r"cases\[2\] is int; an object is meant"),
        (lambda d: d["cases"][0].update(rows=None), r"cases\[0\].rows is None; list is meant"),
        (lambda d: row(d).update(status="good"), r"rows\[0\].status is 'good'"),
        (lambda d: row(d).update(better="less"), r"rows\[0\].better is 'less'"),
        (lambda d: row(d).update(calls=True), r"rows\[0\].calls is True; int is meant"),
        (lambda d: row(d)["samples"].append("1"), r"samples\[\d+\] is '1'; a number is meant"),
        (lambda d: row(d).update(samples=[]), "'ok' with 0 samples"),
        (lambda d: d["cases"][0]["rows"][2].update(samples=[1.0]), "'refused' with 1 samples"),
        (lambda d: row(d).update(median=1e-9), r"rows\[0\].median is 1e-09, .*edited by hand"),
        (lambda d: d["cases"][1]["rows"][1].update(ratio=9.9), "its samples give 4.0"),
        (lambda d: d["cases"][0].update(flops=1e15), "rate is .*edited by hand"),
    ],
)
def test_a_broken_record_is_refused_by_name(
    served: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit(served, change)
    with pytest.raises(RecordError, match=message) as caught:
        load(served)
    assert str(caught.value).startswith(f"{served}: ")


def row(data: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = data["cases"][0]["rows"][0]
    return first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a JSON record"),
        (b"{", "not a JSON record"),
        (b"\xff\xfe\x00", "not a JSON record"),
        (b"[]", "record is list; an object is meant"),
        (b'{"schema": NaN}', "NaN is no number"),
    ],
)
def test_what_is_no_record_at_all(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=message):
        load(path)


def test_a_record_from_before_there_were_peaks_is_read(served: Path) -> None:
    data = json.loads(served.read_text())
    for case in data["cases"]:
        del case["peak_flops"], case["peak_bytes"]
    served.write_text(json.dumps(data))
    assert [case.peak for case in load(served).cases] == [0.0, 0.0]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"x\.json: no such file"):
        load(tmp_path / "x.json")


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
def test_a_write_that_is_interrupted_leaves_nothing(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[BaseException]
) -> None:
    def interrupt(source: Path, target: Path) -> None:
        raise fault

    monkeypatch.setattr(record, "_place", interrupt)
    folder = tmp_path / "out"
    with pytest.raises(fault):
        save(load(served), folder, "x")
    assert list(folder.iterdir()) == []


def test_a_number_that_is_not_one_is_never_written(served: Path, tmp_path: Path) -> None:
    bad = replace(load(served), versions={"x": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        save(bad, tmp_path / "out", "x")
    assert list((tmp_path / "out").glob("*")) == []


def _save_some(data: Record, folder: Path) -> None:
    for _ in range(20):
        save(data, folder, "same")


def test_runs_that_end_at_once_keep_all_their_records(served: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    folder = tmp_path / "out"
    processes = [context.Process(target=_save_some, args=(load(served), folder)) for _ in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    paths = list(folder.iterdir())
    assert len(paths) == 40
    assert all(load(path).package == "demo" for path in paths)
