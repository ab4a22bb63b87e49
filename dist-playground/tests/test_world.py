"""Reading torchrun's variables: alone, launched, half set, and more ranks than GPUs."""

import pytest
import torch
from dist_playground.errors import UsageError
from dist_playground.world import read_world

LAUNCHED = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize("environment", [{}, {"MASTER_ADDR": "head", "MASTER_PORT": "1234"}])
def test_without_torchrun_it_is_alone(environment):
    world = read_world("cpu", environment)
    assert (world.rank, world.size, world.launched, world.backend) == (0, 1, False, "gloo")


def test_torchruns_variables_are_read():
    world = read_world("cpu", LAUNCHED)
    assert (world.rank, world.size, world.local_rank, world.launched) == (3, 4, 1, True)
    assert world.device == torch.device("cpu")


@pytest.mark.parametrize("name", sorted(LAUNCHED))
def test_a_half_set_environment_names_what_is_missing(name):
    environment = {key: value for key, value in LAUNCHED.items() if key != name}
    with pytest.raises(UsageError, match=f"but {name} not: start with torchrun"):
        read_world("cpu", environment)


def test_a_rank_that_is_no_number_is_named():
    with pytest.raises(UsageError, match="WORLD_SIZE='two' is no whole number"):
        read_world("cpu", {**LAUNCHED, "WORLD_SIZE": "two"})


@pytest.mark.parametrize("gpus", [1, 3])
def test_more_ranks_than_gpus_says_what_to_do(monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    environment = {**LAUNCHED, "LOCAL_WORLD_SIZE": "4"}
    with pytest.raises(UsageError, match=f"4 ranks .* {gpus} GPU.*--nproc-per-node {gpus}, or --d"):
        read_world("auto", environment)
    assert read_world("cpu", environment).backend == "gloo"
    one_each = read_world("auto", {**LAUNCHED, "LOCAL_WORLD_SIZE": str(gpus), "LOCAL_RANK": "0"})
    assert one_each.device == torch.device("cuda", 0)
    assert one_each.backend == "nccl"


def test_cuda_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert read_world("auto", {}).device == torch.device("cpu")
    with pytest.raises(UsageError, match="no GPU: use --device cpu"):
        read_world("cuda", {})
