"""torchrun --nproc-per-node 2 compile_checks.py: how many graphs torch.compile makes of a model."""

import torch
from dist_playground.ending import run_and_exit
from dist_playground.plan import build, check
from dist_playground.process_group import process_group
from dist_playground.settings import parse_settings
from dist_playground.train import build_model
from dist_playground.world import read_world
from torch._dynamo.utils import counters


def main() -> None:
    world = read_world("cpu")
    torch.set_num_threads(1)
    with process_group(world, timeout_s=60):
        for kind in ("ddp", "fsdp", "tensor_parallel"):
            torch._dynamo.reset()
            counters.clear()
            options = ["--model", "tiny", "--sequence-length", "16", "--compile"]
            settings = parse_settings("", options)
            model = build_model(settings, world.device)
            parallel = build(kind, settings, world, check(kind, settings, world), model).parallel
            tokens = torch.zeros(2, 16, dtype=torch.int64)
            for _ in range(2):
                parallel.before_step()
                parallel.module(tokens, tokens).backward()
                parallel.after_backward()
                parallel.finish()
            assert counters["stats"]["unique_graphs"] == 1, counters
            assert not counters["graph_break"], counters
            print("one graph", flush=True)


run_and_exit(main)
