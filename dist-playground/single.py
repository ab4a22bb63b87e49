"""torchrun --nproc-per-node 2 single.py

DOC
"""

try:
    from dist_playground.script import run_script
    from dist_playground.single import SINGLE
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: run `pip install ./dist-playground` first") from None

if __name__ == "__main__":
    run_script(SINGLE, __doc__ or "")
