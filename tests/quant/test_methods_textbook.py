"""Methods against slow, explicit loops: one weight after the other, as the papers write it."""

import numpy as np
import pytest

from kvant.packing import all_packings, get, native
from kvant.quant.methods import METHODS, Problem, Quantised, applies
from kvant.quant.methods.feedback import damped, feedback, fitted, inverse_factor
from kvant.quant.methods.grid import grid_of
from kvant.quant.methods.refine import refine, resized

PACKINGS = sorted(p.name for p in all_packings() if applies(p.name))
BY_WEIGHT = [p for p in PACKINGS if get(p).feedback != "units"]
"""The others are in test_lattice_feedback.py."""


def problem_of(packing, rows=6, columns=512, seed=0, threads=1):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((40, columns))
    x = rng.standard_normal((900, 40)) @ mixed * 0.3 + rng.standard_normal((900, columns))
    w = rng.standard_normal((rows, columns)).astype(np.float32) * np.float32(0.05)
    return Problem(packing, w, x.T @ x / len(x), threads)


def nearest(levels, w):
    return int(np.abs(levels - w).argmin())


def levels_of(packing, scales, count):
    """Every level of a block's places: [codes, block]."""
    block = get(packing).block
    codes = np.repeat(np.arange(count, dtype=np.uint8)[:, None], block, 1)
    return native.decode(packing, codes, np.repeat(scales, count))


def textbook_gptq(problem, damping):
    """GPTQ with the inverse itself, eliminated column by column (Optimal Brain Surgeon)."""
    packing = get(problem.packing)
    h = damped(problem.moments, damping)
    inverse = np.linalg.inv(h)
    left = 1 / np.diag(inverse_factor(h)) ** 2
    importance = (left / left.mean()).astype(np.float32)
    w = problem.weights.astype(np.float64)
    q = np.zeros_like(w)
    codes = np.zeros(w.shape, np.uint8)
    for start in range(0, w.shape[1], packing.block):
        stop = start + packing.block
        scales = fitted(
            grid_of(problem.packing), w[:, start:stop].astype(np.float32), importance[start:stop]
        )
        tables = [
            levels_of(problem.packing, scales[r : r + 1], packing.code_count) for r in range(len(w))
        ]
        for j in range(start, stop):
            for row in range(len(w)):
                codes[row, j] = nearest(tables[row][:, j - start], w[row, j])
                q[row, j] = tables[row][codes[row, j], j - start]
                error = (w[row, j] - q[row, j]) / inverse[j, j]
                w[row, j:] -= error * inverse[j, j:]
            inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes, q


@pytest.mark.parametrize("packing", BY_WEIGHT)
def test_feedback_is_the_textbooks(packing):
    problem = problem_of(packing)
    found = feedback(problem, damping=0.01)
    codes, q = textbook_gptq(problem, 0.01)
    # Single precision may round a tie, or a fit, the other way; what follows it then differs too.
    first_block = slice(0, get(packing).block)
    assert (found.codes[:, first_block] == codes[:, first_block]).mean() > 0.98
    expected = Quantised(packing, codes, found.scales, q.astype(np.float32)).loss(problem)
    assert found.loss(problem) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("packing", ["Q2_K", "Q4_K", "Q6_K", "Q4_1"])
def test_each_method_gains_on_the_one_before(packing):
    problem = problem_of(packing, rows=16)
    losses = [METHODS[m](problem).loss(problem) for m in ("search", "feedback", "refine")]
    assert losses[1] < 0.6 * losses[0]
    assert losses[2] < 0.97 * losses[1]
    assert METHODS["refine-long"](problem).loss(problem) < losses[2]


@pytest.mark.parametrize("packing", BY_WEIGHT)
def test_a_sweep_is_the_textbooks_coordinate_descent(packing):
    problem = problem_of(packing)
    start = feedback(problem)
    found = refine(problem, start, sweeps=1, scales=False)
    h = damped(problem.moments, 0.01).astype(np.float32).astype(np.float64)
    block, count = get(packing).block, get(packing).code_count
    codes, q = start.codes.copy(), start.values.astype(np.float64)
    for row in range(len(codes)):
        for j in range(codes.shape[1]):
            at = j // block
            levels = levels_of(packing, start.scales[row, at : at + 1], count)[:, j % block]
            gradient = (q[row] - problem.weights[row]) @ h[:, j]
            codes[row, j] = nearest(levels, q[row, j] - gradient / h[j, j])
            q[row, j] = levels[codes[row, j]]
    assert (found.codes == codes).mean() > 0.99
    expected = Quantised(packing, codes, start.scales, q.astype(np.float32)).loss(problem)
    assert found.loss(problem) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("packing", ["Q2_K", "Q3_K", "Q4_K"])
def test_refitted_scales_solve_the_normal_equations(packing):
    problem = problem_of(packing, rows=3, columns=256)
    start = feedback(problem)
    found = refine(problem, start, sweeps=1)
    h = damped(problem.moments, 0.01)
    for row in range(3):
        unit = found.scales[row].copy()
        columns = []
        for d, dmin in ((1, 0), (0, 1)):
            unit["d"], unit["dmin"] = d, dmin
            columns.append(native.decode(packing, found.codes[row : row + 1], unit)[0])
        a = np.stack([c for c in columns if c.any()], 1).astype(np.float64)
        w = problem.weights[row].astype(np.float64)
        best = np.linalg.solve(a.T @ h @ a, a.T @ h @ w)
        loss_best = (a @ best - w) @ h @ (a @ best - w)
        error = found.values[row] - w
        assert error @ h @ error == pytest.approx(loss_best, rel=2e-3)  # d has eleven bits


@pytest.mark.parametrize("packing", ["Q2_K", "Q3_K", "IQ4_XS", "IQ2_XS", "IQ1_S"])
def test_integer_scales_are_the_best_of_all_one_after_the_other(packing):
    problem = problem_of(packing, rows=2, columns=256)
    start = feedback(problem)
    found = start.scales[:, 0].copy()
    h = problem.moments.astype(np.float32)
    gradient = (start.values - problem.weights) @ h
    shift = resized(grid_of(packing), start.codes, found, gradient, h)
    for row in range(2):
        scales = start.scales[row].copy()

        def loss(codes=start.codes[row : row + 1], wanted=problem.weights[row], scales=scales):
            error = native.decode(packing, codes, scales)[0] - wanted.astype(np.float64)
            return error @ problem.moments @ error

        for kind in get(packing).sub_scales:
            for j in range(256 // kind.n):
                losses = {}
                for k in range(kind.least, kind.most + 1, kind.step):
                    scales[kind.field][0, j] = k
                    losses[k] = loss()
                chosen = int(found[kind.field][row, j])
                assert losses[chosen] <= min(losses.values()) * (1 + 1e-5)
                scales[kind.field][0, j] = chosen
    values = native.decode(packing, start.codes, found)
    np.testing.assert_allclose(start.values + shift, values, atol=1e-6)
    np.testing.assert_allclose(gradient, (values - problem.weights) @ h, atol=1e-4)


def test_the_factor_is_of_the_inverse():
    h = damped(problem_of("Q4_K", columns=256).moments, 0.01)
    u = inverse_factor(h)
    assert np.array_equal(u, np.triu(u))
    np.testing.assert_allclose(u.T @ u, np.linalg.inv(h), atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("packing", PACKINGS)
def test_bytes_decode_to_the_values_whatever_the_threads(method, packing):
    one, three = (
        METHODS[method](problem_of(packing, rows=130, columns=256, threads=t)) for t in (1, 3)
    )
    assert np.array_equal(one.packed(), three.packed())
    assert np.array_equal(native.dequantize(packing, one.packed()), one.values)


@pytest.mark.parametrize("method", METHODS)
def test_columns_never_used_and_rows_of_zeros_do_no_harm(method):
    problem = problem_of("Q3_K")
    problem.moments[:, 7] = problem.moments[7] = 0
    problem.weights[2] = 0
    found = METHODS[method](problem)
    assert np.isfinite(found.values).all()
    assert not found.values[2].any()
    nothing = Problem("Q3_K", problem.weights, np.zeros_like(problem.moments))
    assert np.isfinite(METHODS[method](nothing).values).all()


@pytest.mark.parametrize("packing", ["Q3_K", "IQ2_XS", "IQ3_XXS", "IQ3_S", "IQ1_M"])
def test_each_instruction_set_gives_the_same_codes(packing):
    from kvant import _core

    before, problem = _core.current_isa(), problem_of(packing, rows=3)
    results = []
    try:
        for isa in _core.isas():
            native.use_isa(isa)
            results.append(METHODS["refine"](problem).codes)
    finally:
        native.use_isa(before)
    assert all(np.array_equal(results[0], r) for r in results[1:])


@pytest.mark.parametrize("packing", ["TQ1_0", "TQ2_0"])
def test_weights_of_three_values_stay_as_they_are(packing):
    problem = problem_of(packing)
    codes = np.random.default_rng(1).integers(0, 3, problem.weights.shape)
    problem.weights[...] = (codes - 1) * np.float32(0.0371)
    found = METHODS["refine"](problem)
    assert np.array_equal(found.codes, codes)
    np.testing.assert_allclose(found.values, problem.weights, rtol=1e-3)
