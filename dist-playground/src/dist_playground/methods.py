"""What benchmark.py compares: ways to train, and the sizes at which they train the same model.

Weak scaling: with DDP and FSDP each rank has as many rows as one process alone; with tensor,
pipeline and context parallelism all ranks share the rows of one. "no communication" is the ideal:
as many processes that never talk.
"""

from dataclasses import dataclass, replace

from dist_playground.plan import CAPTURED
from dist_playground.settings import parse_settings
from dist_playground.train import WARM_UP
from dist_playground.trial import Trial

__all__ = [
    "IDEAL",
    "METHODS",
    "RANKS",
    "VARIANTS",
    "VERIFIED_STEPS",
    "Method",
    "Workload",
    "reference_of",
    "trials",
]

RANKS = 2
VERIFIED_STEPS = 4  # of which losses are compared: later ones drift apart, as rounding is amplified
SPLITS_BATCH = ("ddp", "fsdp")
# How a step is run, and the options for it. What is not eager is run once, after all that is.
VARIANTS = {
    "": (),
    ", graph": ("--graph",),
    ", compiled": ("--compile",),
    ", compiled, graph": ("--compile", "--graph"),
}


@dataclass(frozen=True)
class Workload:
    """What one process alone would train on, and for how long."""

    model: str
    rows: int
    sequence_length: int
    dtype: str
    warm_up: int
    timed: int
    rounds: int
    kinds: tuple[str, ...]
    variants: tuple[str, ...] = ("",)

    @property
    def name(self) -> str:
        """The case's name in the record."""
        return f"{self.model} {self.rows}x{self.sequence_length}, {self.dtype}, {RANKS} ranks"

    @property
    def tokens(self) -> int:
        """Of one process alone."""
        return self.rows * self.sequence_length

    def rows_of(self, kind: str) -> int:
        """The global batch: each rank as busy as one process alone, or all sharing its rows."""
        return self.rows * (RANKS if kind in SPLITS_BATCH else 1)


@dataclass(frozen=True)
class Method:
    """One row: a kind of parallelism and its options."""

    name: str
    kind: str
    options: tuple[str, ...] = ()
    ours: bool = True

    def varied(self, variant: str) -> "Method | None":
        """The same, run in another way; None where there is no such way."""
        if not variant:
            return self
        if "--no-reshard" in self.options or self.kind in ("pipeline", "context_parallel"):
            return None
        if "graph" in variant and "torch" in self.options and self.kind not in CAPTURED:
            return None
        return replace(self, name=self.name + variant, options=(*self.options, *VARIANTS[variant]))


IDEAL = Method("no communication", "single", ours=False)
TORCH = ("--impl", "torch")
MICRO = ("--accumulate", "4")
# The first one of each kind is the baseline of its case.
METHODS = {
    "ddp": (
        Method("torch ddp", "ddp", TORCH, ours=False),
        Method("ddp", "ddp"),
        Method("zero1", "ddp", ("--zero1",)),
    ),
    "fsdp": (
        Method("torch fsdp", "fsdp", TORCH, ours=False),
        Method("torch fsdp, no reshard", "fsdp", (*TORCH, "--no-reshard"), ours=False),
        Method("fsdp", "fsdp"),
        Method("fsdp, no reshard", "fsdp", ("--no-reshard",)),
    ),
    "tensor": (
        Method("torch tensor", "tensor_parallel", TORCH, ours=False),
        Method("tensor", "tensor_parallel"),
    ),
    "pipeline": (
        Method("torch pipeline", "pipeline", (*MICRO, *TORCH), ours=False),
        Method("pipeline", "pipeline", MICRO),
        Method("pipeline, all forwards first", "pipeline", (*MICRO, "--schedule", "afab")),
    ),
    "context": (Method("context", "context_parallel"),),
}


def reference_of(kind: str) -> Method:
    """One process that trains on the global batch of this kind of parallelism.

    It rounds weights where the kind does: FSDP also rounds the norms' and the embedding's, to what
    it sends.
    """
    if kind not in SPLITS_BATCH:
        return IDEAL
    script = "fsdp" if kind == "fsdp" else "single"
    return Method(f"reference for {kind}", script, ("--accumulate", str(RANKS)))


def trial(workload: Workload, method: Method, rows: int, alone: bool = False) -> Trial:
    """What the ranks are told to run."""
    options = ["--model", workload.model, "--batch-size", str(rows), "--dtype", workload.dtype]
    options += ["--sequence-length", str(workload.sequence_length), "--learning-rate", "1e-4"]
    settings = parse_settings("", [*options, *method.options])
    warm_up = workload.warm_up + (WARM_UP[settings.impl] if settings.graph else 0)
    return Trial(method.name, method.kind, settings, warm_up, workload.timed, alone)


def trials(workload: Workload) -> list[Trial]:
    """References first, then every method in turns, and what is not eager last."""
    found = []
    for kind in SPLITS_BATCH:
        if kind in workload.kinds:
            rows = workload.rows_of(kind)
            reference = trial(workload, reference_of(kind), rows, alone=True)
            found.append(replace(reference, warm_up=1, timed=VERIFIED_STEPS - 1))
    methods = [method for kind in workload.kinds for method in METHODS[kind]]
    for variant in workload.variants:
        for _ in range(1 if variant else workload.rounds):
            ideal = IDEAL.varied(variant)
            assert ideal is not None
            found.append(trial(workload, ideal, workload.rows, alone=True))
            varied = [method.varied(variant) for method in methods]
            found += [trial(workload, m, workload.rows_of(m.kind)) for m in varied if m]
    return found
