"""torchrun --nproc-per-node 2 fsdp.py

Fully sharded data parallel: as ddp.py, but each rank keeps only its part of the weights, gradients
and optimizer state, and gathers a block's weights just while it runs.
"""

try:
    from dist_playground.script import run_script
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: run `pip install ./dist-playground` first") from None

if __name__ == "__main__":
    run_script("fsdp", __doc__ or "")
