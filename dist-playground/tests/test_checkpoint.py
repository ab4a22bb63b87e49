"""A checkpoint goes on in any mesh, number of ranks and implementation; half ones do not count."""

import json
import re

import pytest
from dist_playground.settings import parse_settings
from launching import PACKAGE, running, train_cases
from one_process import differences

OPTIONS = ["--model", "micro", "--batch-size", "8", "--sequence-length", "24"]
ALONE = ("--device", "cpu", "--model", "micro", "--batch-size", "4", "--sequence-length", "16")


def chain(first_step: int, kinds: dict, folder) -> dict:
    """Each kind goes on where the one before stopped, for one step; the first for four."""
    cases, step = {}, first_step
    for name, (script, more) in kinds.items():
        step += 4 if step == 0 else 1
        options = [*OPTIONS, *more, "--steps", str(step), "--checkpoint", str(folder)]
        cases[name] = (script, options)
    return cases


TWO = {
    "fsdp": ("fsdp", []),
    "tensor": ("tensor_parallel", []),
    "zero1": ("ddp", ["--zero1"]),
    "pipeline": ("pipeline", []),
    "torch fsdp": ("fsdp", ["--impl", "torch"]),
    "torch ddp": ("ddp", ["--impl", "torch"]),
    "context": ("context_parallel", []),
    "torch tensor": ("tensor_parallel", ["--impl", "torch"]),
    "ddp": ("ddp", []),
}
THREE = {"pipeline 3": ("pipeline", []), "fsdp 3": ("fsdp", []), "zero1 3": ("ddp", ["--zero1"])}
FOUR = {
    "fsdp x tensor": ("fsdp", ["--mesh", "tensor=2"]),
    "zero1 4": ("ddp", ["--zero1"]),
    "tensor 4": ("tensor_parallel", []),
    "ddp x pipeline": ("pipeline", ["--mesh", "data=2"]),
    "fsdp 4": ("fsdp", []),
}


def assert_equal(cases: dict, trained: dict) -> None:
    for name, (_, options) in cases.items():
        record, weights = trained[name]
        loss, norm, distance = differences(parse_settings("", options), record, weights)
        assert loss <= 1e-5, name  # test_equals_one_process.py says where these are from
        assert norm <= 1e-4, name
        assert distance <= 1e-4, name


def test_one_kind_goes_on_where_another_stopped(tmp_path):
    folder = tmp_path / "checkpoints"
    cases = chain(
        0, {kind: TWO[kind] for kind in ("fsdp", "tensor", "zero1", "torch fsdp")}, folder
    )
    assert_equal(cases, train_cases(2, cases, tmp_path))
    assert len(list(folder.iterdir())) == 2  # older ones are removed


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_another_number_of_ranks_goes_on(tmp_path):
    folder, step = tmp_path / "checkpoints", 0
    for ranks, kinds in ((2, {"fsdp": TWO["fsdp"]}), (4, FOUR), (3, THREE), (2, TWO)):
        cases = chain(step, kinds, folder)
        assert_equal(cases, train_cases(ranks, cases, tmp_path))
        step = int(sorted(folder.iterdir())[-1].name.removeprefix("step-"))


def test_a_half_written_checkpoint_is_no_checkpoint(launch, tmp_path):
    folder = tmp_path / "checkpoints"
    assert launch("single.py", *ALONE, "--steps", "3", "--checkpoint", str(folder)).returncode == 0
    # What a killed writer leaves: of the next step, and of a much later one.
    for name in ("step-00000005.partial", "step-99999999.partial"):
        (folder / name).mkdir()
        (folder / name / "__0_0.distcp").write_bytes(b"half")
    done = launch("single.py", *ALONE, "--steps", "5", "--checkpoint", str(folder))
    assert done.returncode == 0, done.stderr
    assert "step-00000003, after step 3" in done.stdout
    progress = json.loads((folder / "step-00000005" / "progress.json").read_text())
    assert progress["step"] == len(progress["losses"]) == 5


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    arguments = (*ALONE, "--steps", "2", "--checkpoint", str(folder))
    with running(PACKAGE / "single.py", arguments, 0, folder) as process:
        process.communicate(timeout=60)
    assert process.returncode == 0
    return folder


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--seed", "1"], "is of a run with seed 0, and this one has 1: use the same"),
        pytest.param(
            ["--model", "tiny"],
            "is of a run with model 'micro', and this one has 'tiny'",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--text-bytes", "999"],
            r"is of a run with text \d+, and this one has \d+",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--steps", "2"], "has 2 steps already: use --steps above that", marks=pytest.mark.slow
        ),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(launch, saved, options, says):
    done = launch("single.py", *ALONE, "--steps", "4", "--checkpoint", str(saved), *options)
    assert done.returncode == 1
    assert re.search(says, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
