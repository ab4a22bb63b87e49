"""What a benchmark hands to the harness: implementations, cases, and rows it measured itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Implementation:
    """One way to compute a case.

    function: called as `function(*inputs)`; returns a Tensor or a tuple of Tensors.
    ours: False for a peer, whose refusal does not make the run fail.
    skip: why it cannot run here; then it is recorded as skipped and never called.
    reference: what is right for this one, where it is not what the case asks for: a floor or a
        ceiling to compare with, such as a copy of the same bytes, timed in the same turns and
        verified like the rest. Called like the case's; shape and number of outputs are its own,
        dtype and tolerance the case's. Only for a peer: ValueError with `ours=True`.
    """

    name: str
    function: Callable[..., Any]
    ours: bool = True
    skip: str = ""
    reference: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if self.ours and self.reference is not None:
            raise ValueError(
                f"implementation {self.name!r} is ours and has a reference of its own, so it would "
                "not be held to the case's; drop the reference, or make it a peer with ours=False"
            )


@dataclass(frozen=True)
class Case:
    """One problem that several implementations solve.

    inputs: draws fresh random inputs on the generator's device.
    reference: called with the floating-point inputs upcast to float64; what it returns is right.
    tolerance: largest accepted relative Frobenius error ||out - ref|| / ||ref|| of an output.
    baseline: name of the implementation that ratios are taken against.
    flops, bytes: useful operations of a call, and the least bytes it must move; they give rates.
    peak_flops, peak_bytes: the most FLOP/s and B/s that this machine was seen to reach; they give
        each rate's share of the peak, and the roof of a roofline plot.
    params: what the case is made of, for tables and plots: {"M": 512, "dtype": "float32"}.
    inplace: the function may write to its inputs and return them.
    dtype: of the outputs; by default that of the first floating-point input (for an output whose
        reference is not floating-point: the reference's own).
    """

    name: str
    inputs: Callable[[torch.Generator], tuple[Tensor, ...]]
    reference: Callable[..., Any]
    tolerance: float
    baseline: str
    flops: float = 0.0
    bytes: float = 0.0
    peak_flops: float = 0.0
    peak_bytes: float = 0.0
    params: Mapping[str, Any] = field(default_factory=dict)
    inplace: bool = False
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < float("inf"):
            raise ValueError(
                f"case {self.name!r}: tolerance is {self.tolerance}; give a finite number >= 0"
            )


@dataclass(frozen=True)
class Row:
    """One metric of one implementation, measured by the benchmark itself (a server, a training).

    samples: every sample in `unit`; samples at one index in two rows count as one paired round.
    error: verified error against the reference, where there is one.
    status: "ok", "skipped", "refused" (wrong result) or "failed" (crashed), with a `reason`.
    """

    implementation: str
    metric: str
    unit: str
    samples: Sequence[float]
    ours: bool = True
    better: Better = "higher"
    error: float | None = None
    status: str = "ok"
    reason: str = ""
