"""torchrun --nproc-per-node 2 tensor_parallel.py

Tensor parallel: every matrix is cut over the ranks, and all of them work on the same whole batch.
"""

try:
    from dist_playground.script import run_script
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: run `pip install ./dist-playground` first") from None

if __name__ == "__main__":
    run_script("tensor_parallel", __doc__ or "")
