"""torchrun --nproc-per-node 2 fsdp.py

DOC
"""

try:
    from dist_playground.fsdp import FSDP
    from dist_playground.script import run_script
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: run `pip install ./dist-playground` first") from None

if __name__ == "__main__":
    run_script(FSDP, __doc__ or "")
