"""python single.py

The training loop with nothing parallel in it: what the other scripts must equal. Under torchrun
each rank trains a model of its own on its share of the batch and never talks: the speed that
communication is measured against, and the losses that a missing all-reduce would give.
"""

try:
    from dist_playground.script import run_script
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}: run `pip install ./dist-playground` first") from None

if __name__ == "__main__":
    run_script("single", __doc__ or "")
