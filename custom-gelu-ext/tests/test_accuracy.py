"""Accuracy: every 16-bit value, the whole float32 tail, and float64 against mpmath."""

from __future__ import annotations

import math
import re
import runpy
from pathlib import Path

import custom_gelu_ext
import mpmath
import pytest
import torch
from custom_gelu_ext import build_info, gelu
from torch import Tensor

pytestmark = pytest.mark.skipif(build_info.module is None, reason=build_info.missing)

CSRC = Path(custom_gelu_ext.__file__).parent / "csrc"
SCRIPT = Path(__file__).parents[1] / "tools" / "fit_coefficients.py"
C1 = 2 * math.sqrt(2 / math.pi)
C3 = 0.044715 * C1
ZERO = {"none": -0.7518, "tanh": -0.7525}  # where gelu' is 0, and a relative error means nothing
MANTISSA = {torch.float16: 10, torch.bfloat16: 7}


def reference(x: Tensor, approximate: str) -> Tensor:
    """gelu(x) in float64, without cancellation, for finite x."""
    x = x.double()
    if approximate == "none":
        return x * torch.special.erfc(-x / math.sqrt(2)) / 2
    return x * torch.sigmoid(C1 * x + C3 * x**3)


def reference_derivative(x: Tensor, approximate: str) -> Tensor:
    x = x.double().clamp(-1e3, 1e3)
    if approximate == "none":
        density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        return torch.special.erfc(-x / math.sqrt(2)) / 2 + x * density
    w = C1 * x + C3 * x**3
    return torch.sigmoid(w) * (1 + x * (C1 + 3 * C3 * x * x) * torch.sigmoid(-w))


def mp_gelu(x: float, approximate: str) -> mpmath.mpf:
    wide = mpmath.mpf(x)
    if approximate == "none":
        return wide * mpmath.erfc(-wide / mpmath.sqrt(2)) / 2
    u = mpmath.sqrt(2 / mpmath.pi) * (wide + mpmath.mpf("0.044715") * wide**3)
    return wide / (1 + mpmath.exp(-2 * u))


def derivative(x: Tensor, approximate: str) -> Tensor:
    return torch.ops.custom_gelu_ext.gelu_backward(torch.ones_like(x), x, approximate)


def all_values(dtype: torch.dtype) -> Tensor:
    """All finite values of a 16-bit type."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return x[x.isfinite()]


def sweep() -> Tensor:
    """float32: the tail densely, every binade of both signs, and random bit patterns."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (500_000,), generator=generator).to(torch.int32)
    binades = torch.logspace(-45, 38.5, 500_000, dtype=torch.float64).float()
    dense = torch.linspace(-15, 6, 1_500_000)
    x = torch.cat([dense, binades, -binades, bits.view(torch.float32)])
    return x[x.isfinite()]


def units_in_last_place(error: Tensor, expected: Tensor, dtype: torch.dtype) -> Tensor:
    """|error| in units of ``dtype``'s last place at ``expected``; subnormals share one."""
    exponent = torch.frexp(expected.abs()).exponent - 1
    smallest = round(math.log2(torch.finfo(dtype).tiny))
    return error.abs() / torch.exp2((exponent.clamp_min(smallest) - MANTISSA[dtype]).double())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_every_16_bit_value_is_within_0_6_ulp(device, dtype, approximate):
    x = all_values(dtype)
    got, expected = gelu(x.to(device), approximate).cpu(), reference(x, approximate)
    ulp = units_in_last_place(got.double() - expected, expected, dtype)
    worst = int(ulp.argmax())
    assert ulp.max() <= 0.6, f"{ulp.max():.3f} ulp at x = {x[worst]}"  # NaN fails too
    assert torch.equal(got.signbit(), x.signbit())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_every_16_bit_derivative_is_within_0_6_ulp(device, dtype, approximate):
    x = all_values(dtype)
    got, expected = (
        derivative(x.to(device), approximate).cpu(),
        reference_derivative(x, approximate),
    )
    error = got.double() - expected
    near_zero = (x.double() - ZERO[approximate]).abs() < 0.02
    ulp = units_in_last_place(error, expected, dtype)[~near_zero]
    worst = int(ulp.argmax())
    assert ulp.max() <= 0.6, f"{ulp.max():.3f} ulp at x = {x[~near_zero][worst]}"
    # There the result is a difference of numbers around 0.23, each within 2^-16 of it.
    assert near_zero.any()
    assert error[near_zero].abs().max() < torch.finfo(dtype).eps * 0.02


def check_relative(got: Tensor, expected: Tensor, x: Tensor, bound: float) -> None:
    got = got.cpu().double()
    normal = expected.abs() >= torch.finfo(torch.float32).tiny
    relative = (got - expected).abs()[normal] / expected.abs()[normal]
    worst = int(relative.argmax())
    assert relative.max() <= bound, f"{relative.max():.2e} at x = {x[normal][worst]}"
    # A subnormal result has fewer digits: within the bound, then rounded once.
    excess = (got - expected).abs() - bound * expected.abs()
    assert excess[~normal].max() <= 0.6 * 2.0**-149


def test_float32_is_accurate_over_the_whole_tail(device, approximate):
    x = sweep()
    got, expected = gelu(x.to(device), approximate), reference(x, approximate)
    assert (expected < -1e-44).sum() > 1000  # the sweep does reach to where results vanish
    check_relative(got, expected, x, 1e-6)
    assert torch.equal(got.cpu().signbit(), x.signbit())


def test_float32_derivative_is_accurate_over_the_whole_tail(device, approximate):
    x = sweep()
    expected = reference_derivative(x, approximate)
    got = derivative(x.to(device), approximate).cpu()
    near_zero = (x.double() - ZERO[approximate]).abs() < 0.1
    check_relative(got[~near_zero], expected[~near_zero], x[~near_zero], 2e-6)
    assert (got.double() - expected)[near_zero].abs().max() < 1.5e-7


def test_float64_agrees_with_mpmath(device, approximate):
    # Up to where Q(a) itself becomes subnormal, a little before a Q(a) does.
    most = 37.4 if approximate == "none" else 20.8
    points = torch.linspace(-most, 9, 400, dtype=torch.float64)
    x = torch.cat([points, torch.tensor([-1e-300, 1e-300, 1e300], dtype=torch.float64)])
    with mpmath.workdps(40):
        expected = [mp_gelu(v, approximate) for v in x.tolist()]
        slopes = [mpmath.diff(lambda v: mp_gelu(v, approximate), v) for v in points.tolist()]
        got = gelu(x.to(device), approximate).tolist()
        relative = [float(abs(g - e) / abs(e)) for g, e in zip(got, expected, strict=True)]
        assert max(relative) < 3e-15
        got = derivative(x.to(device), approximate).tolist()
        relative = [float(abs(g - e) / abs(e)) for g, e in zip(got, slopes, strict=False)]
        assert max(relative) < 5e-14  # some of the points lie near the derivative's zero


def test_references_agree_with_mpmath(approximate):
    x = torch.linspace(-15, 9, 301, dtype=torch.float64)
    with mpmath.workdps(40):
        expected = [mp_gelu(v, approximate) for v in x.tolist()]
        slopes = [mpmath.diff(lambda v: mp_gelu(v, approximate), v) for v in x.tolist()]
    got = reference(x, approximate).tolist()
    for g, e in zip(got, expected, strict=True):
        assert abs(g - e) <= 1e-12 * abs(e)
    for g, e in zip(reference_derivative(x, approximate).tolist(), slopes, strict=True):
        assert abs(g - e) <= 1e-11 * abs(e)


def test_the_textbook_formula_fails_these_checks():
    x = sweep()
    textbook = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    with pytest.raises(AssertionError, match="at x = -"):
        check_relative(textbook, reference(x, "none"), x, 1e-6)


def test_the_polynomials_are_what_the_script_computes():
    fits = runpy.run_path(str(SCRIPT))
    text = (CSRC / "gelu_math.h").read_text() + (CSRC / "arithmetic.h").read_text()
    written = [float(number) for number in re.findall(r"-?\d+\.\d+(?:e-?\d+)?(?=f\b)", text)]
    computed = [fits["fit_exp2"](4), fits["fit_exp2"](3), fits["fit_tail"](5, 0.3)]
    for coefficients in fits["fit_tail_quotient"]()[1:]:
        computed.append((0.0, coefficients[:-1]))  # the last ones hardly matter, and vary
    for error, coefficients in computed:
        assert error < 1.2e-5
        for c in coefficients:
            # Another LAPACK may end its last iteration elsewhere in the sixth digit.
            assert any(math.isclose(c, w, rel_tol=1e-4) for w in written), c
    for c in (*fits["fit_tail_double"](), *fits["fit_exp2_double"]()):
        assert repr(c) in text
