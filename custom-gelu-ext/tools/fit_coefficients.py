"""python tools/fit_coefficients.py: recompute the polynomials of csrc/ from their definitions.

Three functions are approximated, the first two in the relative error that the result will have:

* 2^f for f in [-0.5, 0.5], as 1 + f P(f), so that 2^0 is exactly 1;
* R(a) = Q(a) exp(a^2/2), Q(a) = 1 - Phi(a) the normal distribution's tail. R falls smoothly from
  1/2 to about 0.4/a: as a quotient of polynomials P(a)/Q(a), or as t P(t) with t = 1/(1 + k a),
  which maps [0, inf) onto (0, 1], where a short polynomial suffices (a substitution by Hastings,
  1955); k was chosen by trying;
* gelu'(x) from s = sqrt(gelu(x) - minimum) on either side of the minimum, in the absolute error.

For float the fit is Lawson's: least squares, reweighted by the error until all peaks are level
(minimax); the quotient's is that with Loeb's weights. For double it interpolates at Chebyshev's
points, which comes close enough. Coefficients are printed lowest power first, float's with the
largest error over the nodes.
"""

from __future__ import annotations

import math

import mpmath
import numpy as np

LARGEST = 16.0  # beyond a = 14.3 a Q(a) is below even the smallest float32 subnormal


def tail_ratio(a: float) -> float:
    """Return R(a) = Q(a) exp(a^2/2), correct to double precision."""
    with mpmath.workdps(30):
        wide = mpmath.mpf(a)
        return float(mpmath.erfc(wide / mpmath.sqrt(2)) * mpmath.exp(wide * wide / 2) / 2)


def minimax(
    z: np.ndarray, scale: np.ndarray, goal: np.ndarray, degree: int
) -> tuple[float, np.ndarray]:
    """Find P of ``degree`` with the least largest \\|scale P(z) - goal\\|; return that and P."""
    domain = [z.min(), z.max()]
    unit = (2 * z - domain[0] - domain[1]) / (domain[1] - domain[0])
    columns = np.polynomial.chebyshev.chebvander(unit, degree) * scale[:, None]
    weight = np.full(len(z), 1.0 / len(z))
    best, chosen = np.inf, np.zeros(degree + 1)
    for _ in range(300):
        root = np.sqrt(weight)
        solved = np.linalg.lstsq(columns * root[:, None], goal * root, rcond=None)[0]
        error = np.abs(columns @ solved - goal)
        if error.max() < best:
            best, chosen = float(error.max()), solved
        weight *= error / (weight * error).sum()
    series = np.polynomial.Chebyshev(chosen, domain=domain)
    return best, series.convert(kind=np.polynomial.Polynomial).coef


def nodes(low: float, high: float, count: int = 2000) -> np.ndarray:
    """Return points that are dense at both ends, where a polynomial's error peaks."""
    return low + (high - low) * (1 - np.cos(np.pi * (np.arange(count) + 0.5) / count)) / 2


def fit_exp2(degree: int) -> tuple[float, np.ndarray]:
    """Fit P in 2^f = 1 + f P(f)."""
    f = nodes(-0.5, 0.5)
    return minimax(f, f / np.exp2(f), 1 - np.exp2(-f), degree)


def fit_tail(degree: int, k: float) -> tuple[float, np.ndarray]:
    """Fit P in R(a) = t P(t), t = 1/(1 + k a)."""
    t = nodes(1 / (1 + k * LARGEST), 1.0)
    ratio = np.array([tail_ratio(a) for a in (1 / t - 1) / k])
    return minimax(t, t / ratio, np.ones_like(t), degree)


def fit_tail_quotient(degree: int = 4) -> tuple[float, np.ndarray, np.ndarray]:
    """Fit R(a) = P(a) / Q(a) with P(0) = 1/2 and Q(0) = 1; return the error, P and Q.

    The equation P - R Q = 0 is linear in the coefficients; Lawson's weights are divided by Q's last
    values, which turns its error into the quotient's (Loeb, 1957).
    """
    a = (1 / nodes(1 / (1 + 0.35 * 15.0), 1.0) - 1) / 0.35
    # float32's log2(e)/4 is a little small; what that makes of exp(-a^2/2), R makes good.
    constant = math.log2(math.e) / 4
    lost = constant - float(np.float32(constant))
    ratio = np.array([tail_ratio(v) for v in a]) * np.exp2(-2 * lost * a * a)
    powers = a[:, None] ** np.arange(1, degree + 1)
    columns = np.concatenate([powers, -ratio[:, None] * powers], axis=1)
    weight, q_values = np.full(len(a), 1.0 / len(a)), np.ones(len(a))
    best, chosen = np.inf, np.zeros(2 * degree)
    for _ in range(600):
        scale = np.sqrt(weight) / (ratio * q_values)
        level = np.abs(columns * scale[:, None]).max(axis=0)
        weighted = columns * scale[:, None] / level
        solved = np.linalg.lstsq(weighted, (ratio - 0.5) * scale, rcond=None)[0] / level
        p_values, q_values = 0.5 + powers @ solved[:degree], 1 + powers @ solved[degree:]
        error = np.abs(p_values / q_values / ratio - 1)
        if error.max() < best:
            best, chosen = float(error.max()), solved
        weight *= error / error.max() + 1e-3
        weight /= weight.sum()
    return best, np.concatenate([[0.5], chosen[:degree]]), np.concatenate([[1.0], chosen[degree:]])


def fit_exp2_double(degree: int = 11) -> list[float]:
    """Interpolate P in 2^f = 1 + f P(f) at Chebyshev's points."""
    with mpmath.workdps(40):
        angles = [mpmath.pi * (j + mpmath.mpf(1) / 2) / degree for j in range(degree)]
        f = [mpmath.cos(angle) / 2 for angle in angles]
        goals = [mpmath.log(2) if abs(v) < 1e-20 else (mpmath.mpf(2) ** v - 1) / v for v in f]
        powers = mpmath.matrix([[v**power for power in range(degree)] for v in f])
        return [1.0, *(float(c) for c in mpmath.lu_solve(powers, mpmath.matrix(goals)))]


def fit_tail_double(degree: int = 20, k: float = 0.25, largest: float = 40.0) -> list[float]:
    """Interpolate P(z) = R(a) / t at Chebyshev's points; t = 1/(1 + k a), z = 2.25 t - 1.25.

    The first coefficient absorbs the rounding at a = 0, so that R(0) comes out as exactly 1/2.
    """
    with mpmath.workdps(40):
        low, high = 2.25 / (1 + mpmath.mpf(k) * largest) - 1.25, mpmath.mpf(1)
        angles = [mpmath.pi * (j + mpmath.mpf(1) / 2) / (degree + 1) for j in range(degree + 1)]
        z = [(high + low) / 2 + (high - low) / 2 * mpmath.cos(angle) for angle in angles]
        powers = mpmath.matrix([[v**power for power in range(degree + 1)] for v in z])
        goals = []
        for t in ((v + 1.25) / 2.25 for v in z):
            a = (1 / t - 1) / k
            ratio = mpmath.erfc(a / mpmath.sqrt(2)) * mpmath.exp(a * a / 2) / 2
            goals.append(ratio / t)
        found = [float(c) for c in mpmath.lu_solve(powers, mpmath.matrix(goals))]
    at_zero = found[-1]  # Horner's scheme at z = 1: there every product is exact
    for c in reversed(found[:-1]):
        at_zero += c
    found[0] -= at_zero - 0.5
    return found


def gelu_and_derivative(x: np.ndarray, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Return gelu(x) and gelu'(x) in double precision."""
    if mode == "exact":
        upper = np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in x])
        return x * upper, upper + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    c1 = 2 * math.sqrt(2 / math.pi)
    c3 = 0.044715 * c1
    s = 1 / (1 + np.exp(-(c1 * x + c3 * x**3)))
    return x * s, s * (1 + x * (c1 + 3 * c3 * x * x) * (1 - s))


def minimum(mode: str) -> tuple[float, float]:
    """Return where gelu is least, and its value there."""
    low, high = -1.0, -0.5
    for _ in range(100):
        middle = (low + high) / 2
        if gelu_and_derivative(np.array([middle]), mode)[1][0] > 0:
            high = middle
        else:
            low = middle
    return low, float(gelu_and_derivative(np.array([low]), mode)[0][0])


def fit_inverse(mode: str, right: bool, degree: int = 10) -> tuple[float, float, np.ndarray]:
    """Fit gelu'(x) as P(z), z = scale s - 1, s = sqrt(gelu(x) - minimum), on one side of it.

    On either side gelu is monotonic, so that its value determines x and the derivative; near the
    minimum both x and the derivative are smooth functions of s. Return error, scale and P.
    """
    at, least = minimum(mode)
    steps = np.concatenate([2 * np.linspace(0, 1, 3000) ** 2, np.linspace(2, 6.5 if right else 14)])
    value, slope = gelu_and_derivative(at + steps if right else at - steps, mode)
    s = np.sqrt(np.maximum(value - least, 0))
    scale = 2 / s.max()
    error, coefficients = minimax(scale * s - 1, np.ones_like(s), slope, degree)
    return error, scale, coefficients


def main() -> None:
    """Print every coefficient that arithmetic.h, gelu_math.h and derivative_code.h hold."""
    fits = {
        "2^f, for float32 results": fit_exp2(4),
        "2^f, for 16-bit results": fit_exp2(3),
        "R(a) with k = 0.3, for 16-bit results": fit_tail(5, 0.3),
    }
    for name, (error, coefficients) in fits.items():
        print(f"{name}: relative error {error:.1e}")
        print("  " + ", ".join(f"{c:.9g}f" for c in coefficients.astype(np.float32)))
    error, *quotient = fit_tail_quotient()
    print(f"R(a), numerator and denominator, for float32 results: relative error {error:.1e}")
    for coefficients in quotient:
        print("  " + ", ".join(f"{c:.9g}f" for c in coefficients.astype(np.float32)))
    for mode in ("exact", "tanh"):
        print(f"{mode}: the minimum lies at", *(f"{v:.9g}f" for v in minimum(mode)))
        for right in (False, True):
            error, scale, coefficients = fit_inverse(mode, right)
            side = "right" if right else "left"
            print(f"  derivative {side} of it, scale {scale:.9g}f, error {error:.1e}")
            print("    " + ", ".join(f"{c:.9g}f" for c in coefficients.astype(np.float32)))
    print("2^f, for float64")
    print("  " + ", ".join(repr(c) for c in fit_exp2_double()))
    print("R(a) with k = 0.25, for float64")
    print("  " + ", ".join(repr(c) for c in fit_tail_double()))


if __name__ == "__main__":
    main()
