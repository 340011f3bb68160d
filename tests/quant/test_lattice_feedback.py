"""Codes of several weights chosen together, against slow loops with matrices that are inverted."""

from functools import cache
from itertools import combinations

import numpy as np
import pytest

from kvant.packing import all_packings, get, native
from kvant.packing.lattice import _near_points, points_of
from kvant.quant.methods import METHODS, Problem, Quantised
from kvant.quant.methods.feedback import damped, feedback, fitted, inverse_factor
from kvant.quant.methods.grid import grid_of
from kvant.quant.methods.refine import refine

PACKINGS = sorted(p.name for p in all_packings() if p.feedback == "units")


def problem_of(packing, rows=4, columns=256, seed=0):
    """Inputs of which neighbours, and columns far apart, go together."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((900, 40)) @ rng.standard_normal((40, columns)) * 0.3
    x += rng.standard_normal((900, columns))
    x[:, 1::2] += 0.7 * x[:, ::2]
    w = rng.standard_normal((rows, columns)).astype(np.float32) * np.float32(0.05)
    return Problem(packing, w, x.T @ x / len(x))


def ways(grid, t, s, low):
    """Codes, values and signs (1 for minus) of points near ``t``, up to two signs turned."""
    levels = np.array(grid.levels) + (0 if grid.shifted == "nobody" else -1 if low else 1)
    a = t if grid.signs == "none" else np.abs(t)
    step = (levels[-1] - levels[0]) / (len(levels) - 1)
    q = np.rint(np.clip((a / s - levels[0]) / step, 0, len(levels) - 1)).astype(int)
    number = (q * len(levels) ** np.arange(grid.group)).sum()
    near = _near_points(grid.table, grid.group, grid.levels, grid.near)[number]
    points = points_of(grid.table, grid.group)[near]
    if grid.signs == "none":
        shift = grid.shifted == "groups" and low
        return points | int(shift) << grid.level_bits, s * levels[points], np.zeros(len(points))
    minus = (t < 0) ^ turns(grid.group)  # [ways, group]
    codes = points[None] | minus[:, None].astype(int) << grid.level_bits
    values = s * np.where(minus, -1, 1)[:, None] * levels[points][None]
    shape = (-1, grid.group)
    return codes.reshape(shape), values.reshape(shape), np.repeat(minus.sum(1), len(points))


@cache
def turns(group):
    """Which signs are turned: none, each one, each two; [ways, group]."""
    rows = [t for count in range(3) for t in combinations(range(group), count)]
    return np.array([[i in row for i in range(group)] for row in rows])


def best(grid, t, s, low, m, parity=None):
    """Codes, values and (v - t) m (v - t) of the best way, of those of one parity."""
    lows = (False, True) if grid.shifted == "groups" else (low,)
    found = [ways(grid, t, s, b) for b in lows]
    codes, values, minus = (np.concatenate(x) for x in zip(*found, strict=True))
    if parity is not None:
        kept = minus % 2 == parity
        codes, values = codes[kept], values[kept]
    costs = np.einsum("ki,ij,kj->k", values - t, m, values - t)
    return codes[costs.argmin()], values[costs.argmin()], costs.min()


def best_unit(grid, t, s, low, m):
    """Codes and values of a unit whose errors add up by ``m``."""
    if grid.signs != "even":
        return best(grid, t, s, low, m)[:2]
    if grid.group == 8:
        return best(grid, t, s, low, m, 0)[:2]
    one, two = slice(0, 4), slice(4, 8)
    answer = np.linalg.solve(m[two, two], m[two, one])
    found = []
    for parity in range(2):
        c, v, cost = best(grid, t[one], s, low, m[one, one] - m[one, two] @ answer, parity)
        c2, v2, cost2 = best(grid, t[two] - answer @ (v - t[one]), s, low, m[two, two], parity)
        found.append((cost + cost2, np.concatenate([c, c2]), np.concatenate([v, v2])))
    return min(found, key=lambda f: f[0])[1:]


def under(grid, scales, column):
    """Scale and shift of a column of a block."""
    j = column // grid.sub
    return float(np.float32(scales["d"] * grid.unit) * scales["sub"][j]), bool(scales["submin"][j])


def unit_of(grid):
    return 8 if grid.signs == "even" else grid.group


def textbook_feedback(problem):
    """Units of columns in order; of the rest only the inverse is kept, eliminated as it goes."""
    grid = get(problem.packing).grid
    h = damped(problem.moments, 0.01)
    inverse, n = np.linalg.inv(h), unit_of(grid)
    left = 1 / np.diag(inverse_factor(h)) ** 2
    importance = (left / left.mean()).astype(np.float32)
    w = problem.weights.astype(np.float64)
    codes, q = np.zeros(w.shape, np.uint8), np.zeros_like(w)
    for at in range(0, w.shape[1], n):
        if at % 256 == 0:
            block = slice(at, at + 256)
            x = w[:, block].astype(np.float32)
            scales = fitted(grid_of(problem.packing), x, importance[block])
        here = slice(at, at + n)
        m = np.linalg.inv(inverse[here, here])
        for row in range(len(w)):
            s, low = under(grid, scales[row], at % 256)
            codes[row, here], q[row, here] = best_unit(grid, w[row, here], s, low, m)
            w[row] -= (w[row, here] - q[row, here]) @ m @ inverse[here]
        inverse -= inverse[:, here] @ m @ inverse[here]
    return codes, q


@pytest.mark.parametrize("packing", PACKINGS)
def test_feedback_is_the_textbooks(packing):
    problem = problem_of(packing, rows=1, columns=512)
    found = feedback(problem)
    codes, q = textbook_feedback(problem)
    assert (found.codes[:, :256] == codes[:, :256]).mean() > 0.95  # ties, and what follows them
    expected = Quantised(packing, codes, found.scales, q.astype(np.float32)).loss(problem)
    assert found.loss(problem) == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_sweep_is_the_textbooks_descent(packing):
    problem = problem_of(packing, rows=2)
    grid, n = get(packing).grid, unit_of(get(packing).grid)
    start = METHODS["search"](problem)
    found = refine(problem, start, sweeps=1, scales=False)
    h = damped(problem.moments, 0.01).astype(np.float32).astype(np.float64)
    codes, q = start.codes.copy(), start.values.astype(np.float64)
    for row in range(len(codes)):
        for at in range(0, 256, n):
            here = slice(at, at + n)
            m, r = h[here, here], (q[row] - problem.weights[row]) @ h[:, here]
            s, low = under(grid, start.scales[row, 0], at)
            c, v = best_unit(grid, q[row, here] - np.linalg.solve(m, r), s, low, m)
            d = v - q[row, here]
            if d @ m @ d + 2 * d @ r < 0:
                codes[row, here], q[row, here] = c, v
    assert (found.codes == codes).mean() > 0.97
    expected = Quantised(packing, codes, start.scales, q.astype(np.float32)).loss(problem)
    assert found.loss(problem) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("packing", PACKINGS)
def test_each_method_gains_on_the_one_before(packing):
    problem = problem_of(packing, rows=8)
    losses = [METHODS[m](problem).loss(problem) for m in ("search", "feedback", "refine")]
    assert losses[1] < 0.7 * losses[0]
    assert losses[2] < 0.95 * losses[1]


@pytest.mark.parametrize("packing", PACKINGS)
def test_columns_never_used_and_rows_of_zeros_do_no_harm(packing):
    problem = problem_of(packing)
    problem.moments[:, 7] = problem.moments[7] = 0
    problem.weights[2] = 0
    found = METHODS["refine"](problem)
    assert np.isfinite(found.values).all()
    assert np.array_equal(native.dequantize(packing, found.packed()), found.values)
    if get(packing).grid.signs != "none":  # a shifted level is no zero, but its scale is
        assert not found.values[2].any()
