"""torchrun --nproc-per-node 2 context_parallel.py

Context parallel: every rank has some positions of each row; keys and values go round a ring.
"""

try:
    from dist_playground.script import run_script
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: run `pip install ./dist-playground` first") from None

if __name__ == "__main__":
    run_script("context_parallel", __doc__ or "")
