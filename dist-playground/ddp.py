"""torchrun --nproc-per-node 2 ddp.py

Data parallel: every rank has the whole model and its share of each batch; gradients are averaged.
Trains a small GPT on the Python standard library's source, on GPUs (NCCL) or CPUs (gloo).
"""

try:
    from dist_playground.script import run_script
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: run `pip install ./dist-playground` first") from None

if __name__ == "__main__":
    run_script("ddp", __doc__ or "")
