"""torchrun --nproc-per-node 2 worker.py CASES.json OUT.pt: trains many cases in one process group.

Starting Python and torch takes longer than training the small models of these tests.
"""

import json
import sys
import traceback
from pathlib import Path

import torch
from dist_playground.data import Batches, read_standard_library
from dist_playground.ending import run_and_exit
from dist_playground.plan import check
from dist_playground.process_group import process_group
from dist_playground.script import run
from dist_playground.settings import parse_settings
from dist_playground.world import read_world


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text())
    world = read_world(sys.argv[3])
    torch.set_num_threads(1)
    found = {}
    with process_group(world, timeout_s=60):
        for name, (kind, options) in cases.items():
            settings = parse_settings("", [*options, "--save", "-"])
            try:
                sizes = check(kind, settings, world)
                text = read_standard_library(most=settings.text_bytes)
                batches = Batches(
                    text, settings.batch_size, settings.sequence_length, settings.seed
                )
                record, weights = run(kind, world, settings, sizes, batches)
            except Exception:
                print(f"in case {name}", file=sys.stderr)
                traceback.print_exc()
                raise
            found[name] = (record, weights)
    if world.rank == 0:
        torch.save(found, sys.argv[2])


run_and_exit(main)
