"""python benchmark.py [--quick] [--out DIR]: speed, error and memory of our GELU against torch's.

Without a GPU it runs the CPU kernels, with one the CUDA kernels. The cases:

* accuracy: the largest error over every 16-bit value, or over the whole float32 tail;
* forward and backward, exact and tanh: our kernel against torch's, verified against float64;
* for large tensors in turns with these: torch's copy and addition, which move the same bytes as a
  forward (one in, one out) and a backward (two in, one out) and compute next to nothing. That is
  the floor, the time that memory takes; each is verified against its own float64 result;
* bias+GELU and GEGLU: our fused kernels against torch's separate ones, torch.compile's and (GEGLU)
  one in Triton;
* the host's time for a call, and for forward and backward through autograd;
* an MLP block: what it keeps for backward, its gradient's error, and its time.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import infra_bench
except ModuleNotFoundError:  # not installed: use the one in the checkout that this file lies in
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    try:
        import infra_bench  # noqa: F401
    except ModuleNotFoundError:
        sys.exit(
            "benchmark.py needs its harness: use the whole checkout, or pip install infra-bench"
        )

import custom_gelu_ext
from custom_gelu_ext import MLP, bias_gelu, build_info, geglu, gelu
from custom_gelu_ext.mlp import SAVE

from infra_bench import Case, Implementation, Row, Run

# Relative Frobenius errors: a few times what rounding the result to the type leaves.
TOLERANCE = {
    torch.float64: 1e-14,
    torch.float32: 5e-7,
    torch.float16: 5e-4,
    torch.bfloat16: 4e-3,
}
# torch rounds x + bias, or gelu(gate), to 16 bits before it goes on.
ROUNDED_TWICE = 3
NO_EXTENSION = "" if build_info.module else f"no extension: {build_info.missing}"
OURS, EAGER, COMPILED = "custom_gelu_ext", "torch eager", "torch.compile"
CHUNK = 1 << 26  # elements in float64 at a time: the reference's temporaries must fit too
LARGE = 1 << 24  # elements: from here on memory sets the time, and not the launch
BIAS_SHAPES = (
    (16384, 4096, torch.bfloat16),
    (8192, 16384, torch.bfloat16),
    (16384, 4096, torch.float32),
)
MODES = {"exact": "none", "tanh": "tanh"}
C1 = 2 * math.sqrt(2 / math.pi)
C3 = 0.044715 * C1


def in_chunks(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Apply an elementwise function to chunks, so that its temporaries stay small."""

    def whole(*inputs: Tensor) -> Tensor:
        out = torch.empty_like(inputs[0])
        pieces = zip(*(x.reshape(-1).split(CHUNK) for x in inputs), strict=True)
        for at, piece in enumerate(pieces):
            out.view(-1)[at * CHUNK : (at + 1) * CHUNK] = function(*piece)
        return out

    return whole


def reference(x: Tensor, approximate: str) -> Tensor:
    """gelu(x) in float64, in a form that does not cancel in the left tail."""
    if approximate == "tanh":
        return x * torch.sigmoid(C1 * x + C3 * x**3)
    return x * torch.special.erfc(-x / math.sqrt(2)) / 2


def reference_backward(grad: Tensor, x: Tensor, approximate: str) -> Tensor:
    """Grad * gelu'(x) in float64."""
    if approximate == "tanh":
        w = C1 * x + C3 * x**3
        slope = torch.sigmoid(w) * (1 + x * (C1 + 3 * C3 * x * x) * torch.sigmoid(-w))
    else:
        density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        slope = torch.special.erfc(-x / math.sqrt(2)) / 2 + x * density
    return grad * slope


def backward(grad: Tensor, x: Tensor, approximate: str) -> Tensor:
    """What autograd calls: our operator, or torch's where nothing could be compiled."""
    if build_info.module is None:
        return torch.ops.aten.gelu_backward(grad, x, approximate=approximate)
    return torch.ops.custom_gelu_ext.gelu_backward(grad, x, approximate)


def draw(n: int, dtype: torch.dtype, count: int) -> Callable[..., tuple[Tensor, ...]]:
    """Return what draws ``count`` tensors of n normal values, on the generator's device."""

    def inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        device = generator.device
        return tuple(
            torch.randn(n, generator=generator, device=device, dtype=dtype) for _ in range(count)
        )

    return inputs


def floor(elements: int, direction: str) -> list[Implementation]:
    """Return what moves the bytes of a large forward or backward, and hardly computes.

    As a forward's first input is x, and a backward's first two are grad and x, the others are left.
    """
    if elements < LARGE:
        return []
    if direction == "forward":
        return [
            Implementation(
                "torch copy",
                lambda x, *_: x.clone(),
                ours=False,
                reference=lambda x, *_: x,
            )
        ]
    return [
        Implementation(
            "torch add",
            lambda grad, x, *_: grad + x,
            ours=False,
            reference=lambda grad, x, *_: grad + x,
        )
    ]


def speed_cases(
    mode: str, dtype: torch.dtype, n: int
) -> Iterator[tuple[Case, list[Implementation]]]:
    """Forward and backward of one mode, type and size, each with its implementations."""
    approximate, size, short = MODES[mode], f"2^{int(math.log2(n))}", str(dtype).split(".")[1]
    params = {"mode": mode, "dtype": short, "elements": n, "size": size}
    yield (
        Case(
            name=f"{mode} forward {short} {size}",
            inputs=draw(n, dtype, 1),
            reference=in_chunks(lambda x: reference(x, approximate)),
            tolerance=TOLERANCE[dtype],
            baseline="F.gelu",
            bytes=2.0 * n * dtype.itemsize,
            params={**params, "direction": "forward"},
        ),
        [
            Implementation(OURS, lambda x: gelu(x, approximate)),
            Implementation("F.gelu", lambda x: F.gelu(x, approximate=approximate), ours=False),
            *floor(n, "forward"),
        ],
    )
    yield (
        Case(
            name=f"{mode} backward {short} {size}",
            inputs=draw(n, dtype, 2),
            reference=in_chunks(lambda grad, x: reference_backward(grad, x, approximate)),
            tolerance=TOLERANCE[dtype],
            baseline="F.gelu",
            bytes=3.0 * n * dtype.itemsize,
            params={**params, "direction": "backward"},
        ),
        [
            Implementation(OURS, lambda grad, x: backward(grad, x, approximate)),
            Implementation(
                "F.gelu",
                lambda grad, x: torch.ops.aten.gelu_backward(grad, x, approximate=approximate),
                ours=False,
            ),
            *floor(n, "backward"),
        ],
    )


def compiled(function: Callable[..., object]) -> Implementation:
    """torch.compile of a peer, for exactly the shapes it meets."""
    reason = "" if torch.cuda.is_available() else "compiled for the GPU only"
    return Implementation(COMPILED, torch.compile(function, dynamic=False), ours=False, skip=reason)


def bias_cases(
    rows: int, width: int, dtype: torch.dtype
) -> Iterator[tuple[Case, list[Implementation]]]:
    """gelu(x + bias) and its backward with the bias's gradient."""
    short, n = str(dtype).split(".")[1], rows * width
    params = {"dtype": short, "elements": n, "size": f"{rows}x{width}"}

    def forward_inputs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)

        return normal(rows, width), normal(width)

    def backward_inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        x, bias = forward_inputs(generator)
        grad = torch.randn(x.shape, generator=generator, device=x.device, dtype=dtype)
        return grad, x, bias, x + bias  # torch's own forward has kept the sum

    def forward_reference(x: Tensor, bias: Tensor) -> Tensor:
        return reference(x + bias, "none")

    def backward_reference(
        grad: Tensor, x: Tensor, bias: Tensor, total: Tensor
    ) -> tuple[Tensor, Tensor]:
        grad_x = reference_backward(grad, x + bias, "none")
        return grad_x, grad_x.sum(0)

    def separate(grad: Tensor, x: Tensor, bias: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        grad_x = torch.ops.aten.gelu_backward(grad, total)
        return grad_x, grad_x.sum(0)

    def fused(grad: Tensor, x: Tensor, bias: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.custom_gelu_ext.bias_gelu_backward(grad, x, bias, "none")

    def eager(x: Tensor, bias: Tensor) -> Tensor:
        return F.gelu(x + bias)

    tolerance = ROUNDED_TWICE * TOLERANCE[dtype]
    yield (
        Case(
            name=f"bias+GELU forward {short} {rows}x{width}",
            inputs=forward_inputs,
            reference=forward_reference,
            tolerance=tolerance,
            baseline=EAGER,
            bytes=2.0 * n * dtype.itemsize,
            params={**params, "direction": "forward"},
        ),
        [
            Implementation(OURS, bias_gelu),
            Implementation(EAGER, eager, ours=False),
            compiled(eager),
            *floor(n, "forward"),
        ],
    )
    yield (
        Case(
            name=f"bias+GELU backward {short} {rows}x{width}",
            inputs=backward_inputs,
            reference=backward_reference,
            tolerance=tolerance,
            baseline=EAGER,
            bytes=3.0 * n * dtype.itemsize,
            params={**params, "direction": "backward"},
        ),
        [
            Implementation(OURS, fused, skip=NO_EXTENSION),
            Implementation(EAGER, separate, ours=False),
            compiled(separate),
            *floor(n, "backward"),
        ],
    )


def geglu_cases(n: int, dtype: torch.dtype) -> Iterator[tuple[Case, list[Implementation]]]:
    """gelu(gate) * value and its backward."""
    short, size = str(dtype).split(".")[1], f"2^{int(math.log2(n))}"
    params = {"dtype": short, "elements": n, "size": size}
    triton_forward, triton_backward, no_triton = triton_geglu()

    def backward_inputs(generator: torch.Generator) -> tuple[Tensor, ...]:
        grad, gate, value = draw(n, dtype, 3)(generator)
        return grad, gate, value, F.gelu(gate)  # torch's own forward has kept the last

    def eager(gate: Tensor, value: Tensor) -> Tensor:
        return F.gelu(gate) * value

    def separate(grad: Tensor, gate: Tensor, value: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.aten.gelu_backward(grad * value, gate), grad * kept

    def recomputing(
        grad: Tensor, gate: Tensor, value: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        return torch.ops.aten.gelu_backward(grad * value, gate), grad * F.gelu(gate)

    def fused(grad: Tensor, gate: Tensor, value: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.custom_gelu_ext.geglu_backward(grad, gate, value, "none")

    def backward_reference(
        grad: Tensor, gate: Tensor, value: Tensor, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        return reference_backward(grad * value, gate, "none"), grad * reference(gate, "none")

    tolerance = ROUNDED_TWICE * TOLERANCE[dtype]
    yield (
        Case(
            name=f"GEGLU forward {short} {size}",
            inputs=draw(n, dtype, 2),
            reference=in_chunks(lambda gate, value: reference(gate, "none") * value),
            tolerance=tolerance,
            baseline=EAGER,
            bytes=3.0 * n * dtype.itemsize,
            params={**params, "direction": "forward"},
        ),
        [
            Implementation(OURS, geglu),
            Implementation(EAGER, eager, ours=False),
            compiled(eager),
            Implementation("Triton", triton_forward, ours=False, skip=no_triton),
        ],
    )
    yield (
        Case(
            name=f"GEGLU backward {short} {size}",
            inputs=backward_inputs,
            reference=backward_reference,
            tolerance=tolerance,
            baseline=EAGER,
            bytes=5.0 * n * dtype.itemsize,
            params={**params, "direction": "backward"},
        ),
        [
            Implementation(OURS, fused, skip=NO_EXTENSION),
            Implementation(EAGER, separate, ours=False),
            compiled(recomputing),
            Implementation("Triton", triton_backward, ours=False, skip=no_triton),
        ],
    )


def triton_geglu() -> tuple[Callable[..., Tensor], Callable[..., tuple[Tensor, Tensor]], str]:
    """The Triton peer, and why it cannot run here."""
    if not torch.cuda.is_available():

        def nothing(*inputs: Tensor) -> Tensor:
            raise NotImplementedError

        return nothing, nothing, "needs a GPU"
    from benchmark_triton import geglu_backward, geglu_forward

    return geglu_forward, geglu_backward, ""


def largest_error(got: Tensor, x: Tensor, approximate: str) -> float:
    """Units in the last place for 16-bit types; the relative error of normal float32 results."""
    exact = reference(x.double(), approximate)
    info = torch.finfo(x.dtype)
    error = (got.double() - exact).abs()
    if x.dtype == torch.float32:
        normal = exact.abs() >= info.tiny
        return float((error[normal] / exact[normal].abs()).max())
    exponent = torch.frexp(exact).exponent - 1
    exponent = exponent.clamp_min(round(math.log2(info.tiny)))
    return float((error / (torch.exp2(exponent.double()) * info.eps)).max())


def values(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Every 16-bit value, or a dense float32 sweep, between -1000 and 1000."""
    if dtype == torch.float32:
        tail = torch.linspace(-15, 5, 2_000_001)
        small = torch.logspace(-37, 3, 200_001, dtype=torch.float64).float()
        x = torch.cat([tail, small, -small])
    else:
        x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return x[x.abs() <= 1000].to(device)


def add_accuracy(run: Run, mode: str, dtype: torch.dtype, device: torch.device) -> None:
    """Record the largest error of ours and of torch's forward over ``values``."""
    x, approximate, short = values(dtype, device), MODES[mode], str(dtype).split(".")[1]
    unit = "relative" if dtype == torch.float32 else "ulp"
    ours = largest_error(gelu(x, approximate), x, approximate)
    torchs = largest_error(F.gelu(x, approximate=approximate), x, approximate)
    run.add(
        f"{mode} accuracy {short}",
        [
            Row(OURS, "largest error", unit, [ours], better="lower"),
            Row("F.gelu", "largest error", unit, [torchs], ours=False, better="lower"),
        ],
        baseline="F.gelu",
        params={"mode": mode, "dtype": short, "values": x.numel()},
    )


def seconds_a_call(function: Callable[[], object], device: torch.device, calls: int) -> float:
    """The host's time: launches are only queued, and waited for outside of the clock."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    spent = time.perf_counter() - start
    wait()
    return spent / calls


def add_host_time(run: Run, device: torch.device, rounds: int) -> None:
    """Record what a call on 1024 elements costs the host, by several ways, and through autograd."""
    x = torch.randn(1024, device=device)
    leaf, grad = x.clone().requires_grad_(), torch.ones_like(x)

    def torchs(x: Tensor, approximate: str) -> Tensor:
        return F.gelu(x, approximate=approximate)

    operator = torchs if NO_EXTENSION else torch.ops.custom_gelu_ext.gelu.default
    direct = getattr(build_info.module, "gelu", operator)

    def differentiate(function: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(leaf), leaf, grad)

    calls: dict[str, Callable[[], object]] = {
        OURS: lambda: gelu(x),
        "F.gelu": lambda: F.gelu(x),
        "torch.ops": lambda: operator(x, "none"),
        "pybind11": lambda: direct(x, "none"),
    }
    trainings = {OURS: differentiate(gelu), "F.gelu": differentiate(F.gelu)}
    for name, ways, count in (
        ("a call", calls, 400),
        ("forward and backward", trainings, 200),
    ):
        samples: dict[str, list[float]] = {way: [] for way in ways}
        for function in ways.values():
            seconds_a_call(function, device, 50)
        for _ in range(rounds):
            for way, function in ways.items():
                samples[way].append(seconds_a_call(function, device, count))
        run.add(
            f"host time of {name}",
            [
                Row(way, "host time", "s", values, ours=way != "F.gelu", better="lower")
                for way, values in samples.items()
            ],
            baseline="F.gelu",
            params={"elements": 1024, "device": device.type},
        )


def add_mlp(run: Run, dim: int, hidden: int, rows: int, repeats: int) -> None:
    """Record what an MLP block keeps for backward, its time, and its gradient's error (CUDA)."""
    dtype, device = torch.bfloat16, torch.device("cuda")
    torch.manual_seed(0)
    exact = MLP(dim, hidden, save="input", device=device, dtype=dtype)
    eager = torch.nn.Sequential(exact.up, torch.nn.GELU(), exact.down)
    x = torch.randn(rows, dim, device=device, dtype=dtype, requires_grad=True)
    grad = torch.randn_like(x)
    models: dict[str, torch.nn.Module] = {EAGER: eager}
    for save in SAVE:
        model = MLP(dim, hidden, save=save, device=device, dtype=dtype)
        model.load_state_dict(exact.state_dict())
        models[f"save={save}"] = model

    def gradients(model: torch.nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(model(x), (x, *model.parameters()), grad)

    few = slice(0, min(rows, 1024))  # the float64 reference takes a while
    wide = torch.nn.Sequential(
        torch.nn.Linear(dim, hidden), torch.nn.GELU(), torch.nn.Linear(hidden, dim)
    )
    wide.load_state_dict(eager.state_dict())
    wide = wide.to(device, torch.float64)
    right = gradients(wide, x[few].detach().double().requires_grad_(), grad[few].double())
    del wide
    kept, spent, errors = {}, {name: [] for name in models}, {}
    for name, model in models.items():
        own = gradients(model, x[few].detach().requires_grad_(), grad[few])
        errors[name] = max(
            float((a.double() - b).norm() / b.norm()) for a, b in zip(own, right, strict=True)
        )
        del own
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        y = model(x)
        # The output goes to the next layer; x was there before, and is kept all the same.
        held = torch.cuda.memory_allocated() - before - y.numel() * y.element_size()
        kept[name] = float(held + x.numel() * x.element_size())
        del y
    for _ in range(repeats):
        for name, model in models.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            gradients(model, x, grad)
            end.record()
            end.synchronize()
            spent[name].append(start.elapsed_time(end) * 1e-3)
    rows_ = []
    for name in models:
        ours = name != EAGER
        rows_.append(Row(name, "kept for backward", "B", [kept[name]], ours=ours, better="lower"))
        rows_.append(
            Row(
                name,
                "forward and backward",
                "s",
                spent[name][2:],
                ours=ours,
                better="lower",
                error=errors[name],
            )
        )
    run.add(
        f"MLP {dim}-{hidden}-{dim}, {rows} rows, bfloat16",
        rows_,
        baseline=EAGER,
        params={"dim": dim, "hidden": hidden, "rows": rows},
    )


def add_training(run: Run, device: torch.device, steps: int, seeds: int) -> None:
    """Record the loss that a small MLP reaches with each way of keeping the derivative."""

    def final_loss(save: str, seed: int) -> float:
        torch.manual_seed(seed)
        layers = [torch.nn.Linear(8, 64), MLP(64, 256, save=save), MLP(64, 256, save=save)]
        model = torch.nn.Sequential(*layers, torch.nn.Linear(64, 1)).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        losses = []
        for step in range(steps):
            # To 0: at a constant rate, changing one weight by 1e-6 moves the last losses by 10%.
            optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
            x = torch.randn(256, 8).to(device)
            loss = (model(x) - (3 * x[:, :1] * x[:, 1:2]).sin()).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return float(torch.stack(losses[-50:]).mean())

    run.add(
        f"training a small MLP, {steps} steps",
        [
            Row(
                f"save={save}",
                "final loss",
                "",
                [final_loss(save, seed) for seed in range(seeds)],
                better="lower",
            )
            for save in SAVE
        ],
        baseline="save=input",
        params={"steps": steps, "seeds": seeds},
    )


def plan(device: torch.device, quick: bool) -> Iterator[tuple[str, torch.dtype, int]]:
    """Yield the mode, type and size of every speed case."""
    if device.type == "cuda":
        types = (torch.bfloat16, torch.float32, torch.float16, torch.float64)
        exponents = (20, 24) if quick else (10, 16, 20, 24, 26, 28, 30)
        yield from (
            ("exact", dtype, 2**e) for dtype in types[: 2 if quick else 4] for e in exponents
        )
        if quick:
            yield "exact", torch.bfloat16, 2**28
        else:
            yield from (("tanh", dtype, 2**28) for dtype in types[:3])
        return
    yield from (("exact", torch.float32, 2**e) for e in (16, 20))
    yield "exact", torch.bfloat16, 2**20
    yield "tanh", torch.float32, 2**20
    if not quick:
        yield "tanh", torch.bfloat16, 2**20
        yield from ((mode, torch.float16, 2**20) for mode in MODES)
        yield "exact", torch.float64, 2**20
        yield "exact", torch.float32, 2**24


def no_room(dtype: torch.dtype, n: int, device: torch.device) -> str:
    """Return why a GPU cannot verify a backward of n elements; empty where it can.

    Its inputs, their float64 copies and the reference are there at once, with what is made of them.
    """
    if device.type == "cpu":
        return ""
    needed = n * (3 * 8 + 6 * dtype.itemsize) + 8 * 8 * CHUNK
    if needed <= torch.cuda.get_device_properties(device).total_memory:
        return ""
    return f"needs {needed / 2**30:.0f} GiB of GPU memory"


def fused_cases(device: torch.device, quick: bool) -> Iterator[tuple[Case, list[Implementation]]]:
    """Yield the cases of bias+GELU and GEGLU."""
    if device.type == "cpu":
        yield from bias_cases(1024, 1024, torch.float32)
        yield from geglu_cases(2**20, torch.float32)
        return
    for rows, width, dtype in BIAS_SHAPES[: 1 if quick else None]:
        yield from bias_cases(rows, width, dtype)
    for dtype in (torch.bfloat16, torch.float32)[: 1 if quick else None]:
        yield from geglu_cases(2**26, dtype)


def main() -> int:
    """Run all cases; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a minute's worth of cases")
    parser.add_argument("--out", type=Path, help="folder for the record instead of results/")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = Run(
        "custom-gelu-ext", directory=Path(__file__).parent, version=custom_gelu_ext.__version__
    )
    budget = 0.2 if args.quick else 0.3
    accuracy_of = (torch.float32, torch.float16, torch.bfloat16)
    for mode in MODES:
        for dtype in accuracy_of:
            add_accuracy(run, mode, dtype, device)
    add_host_time(run, device, rounds=10 if args.quick else 60)
    for mode, dtype, n in plan(device, args.quick):
        skip = no_room(dtype, n, device)
        for case, implementations in speed_cases(mode, dtype, n):
            here = [replace(each, skip=skip) for each in implementations]
            # In a graph, where launching would count: so that a busy host does not.
            graph = device.type == "cuda" and n < LARGE
            run.measure(case, here, device=device, budget_s=budget, graph=graph)
    for case, implementations in fused_cases(device, args.quick):
        run.measure(case, implementations, device=device, budget_s=budget)
    if device.type == "cuda" and not NO_EXTENSION:
        add_mlp(run, 4096, 16384, 8192, repeats=5 if args.quick else 12)
    if not args.quick:
        add_training(run, device, steps=600, seeds=3)
    run.finish(out=args.out)
    return run.exit_code


if __name__ == "__main__":
    sys.exit(main())
