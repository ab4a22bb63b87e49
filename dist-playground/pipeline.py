"""torchrun --nproc-per-node 2 pipeline.py --accumulate 4

Pipeline parallel: every rank has some of the layers, and micro-batches flow through them.
With 4 ranks, `--mesh data=2` makes two such pipelines that average their gradients.
"""

try:
    from dist_playground.script import run_script
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: run `pip install ./dist-playground` first") from None

if __name__ == "__main__":
    run_script("pipeline", __doc__ or "")
