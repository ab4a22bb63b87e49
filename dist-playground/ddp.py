"""torchrun --nproc-per-node 2 ddp.py

DOC
"""

try:
    from dist_playground.ddp import DDP
    from dist_playground.script import run_script
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: run `pip install ./dist-playground` first") from None

if __name__ == "__main__":
    run_script(DDP, __doc__ or "")
