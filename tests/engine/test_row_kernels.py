"""The engine's row and attention kernels against NumPy in double precision, on every usable ISA."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvant import _core
from oracles.kernels import using

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

BLOCK = 32
F16, Q8_0 = 0, 1


@pytest.fixture(params=_core.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with using(request.param):
        yield request.param


# ---- rows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "groups"), [(2048, 1), (896, 1), (24, 3), (7, 1), (1280, 16)])
def test_rms_norm(isa: str, width: int, groups: int) -> None:
    rng = np.random.default_rng(width)
    x = rng.standard_normal(width, np.float32)
    w = rng.standard_normal(width // groups, np.float32)
    y = np.empty_like(x)
    _core.rows_rms_norm(x, w, y, groups, 1e-5)
    parts = x.astype(np.float64).reshape(groups, -1)
    want = parts / np.sqrt((parts**2).mean(1, keepdims=True) + 1e-5) * w
    np.testing.assert_allclose(y, want.ravel(), rtol=2e-6, atol=1e-7)
    _core.rows_rms_norm(x, w, x, groups, 1e-5)
    assert np.array_equal(x, y)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [2048, 896, 24, 7, 1280, 1])
def test_layer_norm(isa: str, width: int, bias: bool) -> None:
    rng = np.random.default_rng(width)
    # A mean that is large beside the deviation: the variance must not be a difference of sums.
    x = (rng.standard_normal(width) + 9).astype(np.float32)
    w, b = rng.standard_normal((2, width)).astype(np.float32)
    y = np.empty_like(x)
    _core.rows_layer_norm(x, w, b if bias else None, y, 1e-5)
    wide = x.astype(np.float64)
    want = (wide - wide.mean()) / np.sqrt(wide.var() + 1e-5) * w + (b if bias else 0)
    np.testing.assert_allclose(y, want, rtol=2e-5, atol=2e-5)
    _core.rows_layer_norm(x, w, b if bias else None, x, 1e-5)
    assert np.array_equal(x, y)


def test_a_part_of_a_head_is_turned(isa: str) -> None:
    x = np.random.default_rng(0).standard_normal((3, 96)).astype(np.float32)
    angle = np.random.default_rng(1).uniform(0, 6, 36)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    part = np.ascontiguousarray(x[:, :72])
    rest = x[:, 72:].copy()
    _core.rows_rope(x, cos, sin)
    _core.rows_rope(part, cos, sin)
    assert np.array_equal(x[:, :72], part)
    assert np.array_equal(x[:, 72:], rest)


@pytest.mark.parametrize("head_dim", [2, 8, 80, 96, 128])
def test_rope(isa: str, head_dim: int) -> None:
    rng = np.random.default_rng(head_dim)
    x = rng.standard_normal((5, head_dim), np.float32)
    angle = rng.uniform(0, 6, head_dim // 2)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    a, b = np.split(x.astype(np.float64), 2, axis=1)
    want = np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=1)
    _core.rows_rope(x, cos, sin)
    np.testing.assert_allclose(x, want, rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize("n", [1, 15, 16, 8192, 4864 + 3])
def test_swiglu_and_add(isa: str, n: int) -> None:
    rng = np.random.default_rng(n)
    gate, up = (rng.standard_normal((2, n)) * 8).astype(np.float32)
    y = np.empty_like(gate)
    _core.rows_swiglu(gate, up, y)
    g = gate.astype(np.float64)
    np.testing.assert_allclose(y, g / (1 + np.exp(-g)) * up, rtol=1e-6)
    total = gate.copy()
    _core.rows_add(total, up)
    assert np.array_equal(total, gate + up)


def test_swiglu_at_the_ends_of_the_range(isa: str) -> None:
    gate = np.array([-1e30, -200, -90, -0.0, 0.0, 90, 200, 1e30, np.nan], np.float32)
    y = np.empty_like(gate)
    _core.rows_swiglu(gate, np.ones_like(gate), y)
    assert np.isnan(y[-1])
    np.testing.assert_allclose(y[2:-1], [0, 0, 0, 90, 200, 1e30], atol=1e-30)
    assert np.all(np.abs(y[:2]) < 1e-7)


def _gelu(x: F32, tanh: bool) -> F64:
    wide = x.astype(np.float64)
    if tanh:
        return 0.5 * wide * (1 + np.tanh((2 / np.pi) ** 0.5 * (wide + 0.044715 * wide**3)))
    return np.array([0.5 * v * math.erfc(-v * 0.5**0.5) for v in wide.tolist()])


@pytest.mark.parametrize("n", [1, 15, 16, 4864 + 3])
def test_gelu(isa: str, n: int) -> None:
    rng = np.random.default_rng(n)
    x, up = (rng.standard_normal((2, n)) * 3).astype(np.float32)
    y = np.empty_like(x)
    for tanh in (True, False):
        _core.rows_gelu(x, y, tanh)
        np.testing.assert_allclose(y, _gelu(x, tanh), rtol=2e-6, atol=6e-7)
    _core.rows_geglu(x, up, y)
    np.testing.assert_allclose(y, _gelu(x, True) * up, rtol=2e-6, atol=4e-6)
    both = x.copy()
    _core.rows_geglu(both, up, both)
    assert np.array_equal(both, y)


def test_gelu_at_the_ends_of_the_range(isa: str) -> None:
    x = np.array([-1e30, -200, -12, -0.0, 0.0, 12, 200, 1e30, np.nan], np.float32)
    y = np.empty_like(x)
    for tanh in (True, False):
        _core.rows_gelu(x, y, tanh)
        assert np.isnan(y[-1])
        np.testing.assert_allclose(y[:-1], [0, 0, 0, 0, 0, 12, 200, 1e30], atol=1e-6)


@pytest.mark.parametrize("n", [1, 33, 4096])
def test_scale_and_soft_cap(isa: str, n: int) -> None:
    x = (np.random.default_rng(n).standard_normal(n) * 60).astype(np.float32)
    y = np.empty_like(x)
    _core.rows_scale(x, 0.22, y)
    assert np.array_equal(y, x * np.float32(0.22))
    _core.rows_soft_cap(x, 30.0, y)
    np.testing.assert_allclose(y, np.tanh(x.astype(np.float64) / 30) * 30, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [1, 31, 1000, 128256])
def test_log_sum_exp(isa: str, n: int) -> None:
    x = (np.random.default_rng(n).standard_normal(n) * 10).astype(np.float32)
    greatest, total = _core.rows_log_sum_exp(x)
    assert greatest == x.max()
    np.testing.assert_allclose(total, np.exp(x.astype(np.float64) - x.max()).sum(), rtol=2e-7)


# ---- attention ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    kv_heads: int = 2
    head_dim: int = 64
    group: int = 4
    type: int = F16
    length: int = 150
    window: int = 0
    softcap: float = 0.0
    spread: float = 1.0
    seed: int = 0

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)


@dataclass(frozen=True)
class Sequence:
    """Queries, keys and values of one sequence, stored in blocks that lie anywhere."""

    case: Case
    q: F32
    k: F32
    v: F32
    cache: npt.NDArray[np.uint8]
    table: npt.NDArray[np.int32]

    @staticmethod
    def make(c: Case) -> Sequence:
        rng = np.random.default_rng(c.seed)
        q, k, v = (
            (rng.standard_normal((c.length, heads * c.head_dim)) * c.spread).astype(np.float32)
            for heads in (c.kv_heads * c.group, c.kv_heads, c.kv_heads)
        )
        blocks = -(-c.length // BLOCK)
        _, size = _core.rows_kv_bytes(c.kv_heads, c.head_dim, c.type)
        table = rng.permutation(blocks + 3)[:blocks].astype(np.int32)
        # What was never written must not matter: every byte says NaN.
        return Sequence(c, q, k, v, np.full((blocks + 3) * size, 0x7F, np.uint8), table)

    def write(self, first: int, n: int) -> None:
        c, rows = self.case, slice(first, first + n)
        for head in range(c.kv_heads):
            _core.rows_kv_write(
                c.kv_heads, c.head_dim, c.type, self.cache, self.table, first,
                self.k[rows], self.v[rows], head, head + 1,
            )  # fmt: skip

    def attend(self, first: int, n: int, split: bool = False) -> F32:
        c = self.case
        out = np.full((n, self.q.shape[1]), np.nan, np.float32)
        _core.rows_attend(
            c.kv_heads, c.head_dim, c.type, self.cache, self.table, first,
            self.q[first : first + n], out, c.scale, c.window, c.softcap, split, 1,
        )  # fmt: skip
        return out

    def run(self, chunks: list[int]) -> F32:
        """The whole sequence, written and attended chunk by chunk."""
        out, first = [], 0
        for n in chunks:
            self.write(first, n)
            out.append(self.attend(first, n))
            first += n
        assert first == self.case.length
        return np.concatenate(out)


def stored(x: F32, head_dim: int, kind: int) -> F64:
    """What the cache holds of keys or values [length, heads * head_dim]."""
    if kind == F16:
        return x.astype(np.float16).astype(np.float64)
    heads = x.reshape(len(x), -1, head_dim).astype(np.float64)
    out = np.empty_like(heads)
    for e in range(0, head_dim, 32):
        part = heads[..., e : e + 32]
        peak = np.abs(part).max(-1, keepdims=True).astype(np.float32)
        d = (peak / np.float32(127)).astype(np.float16).astype(np.float32)
        # In float32 by the reciprocal, as the kernel does it: where a number lies between two codes
        # any other way of dividing may choose the other one.
        inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d > 0)
        codes = np.rint(np.clip(part.astype(np.float32) * inverse, -127, 127))
        out[..., e : e + 32] = codes.astype(np.float64) * d
    return out.reshape(x.shape)


def reference(s: Sequence, rows: slice = slice(None)) -> F64:
    c = s.case
    k, v = stored(s.k, c.head_dim, c.type), stored(s.v, c.head_dim, c.type)
    at = np.arange(c.length)[rows]
    hidden = np.arange(c.length)[None] > at[:, None]
    if c.window > 0:
        hidden |= np.arange(c.length)[None] <= at[:, None] - c.window
    out = np.empty((len(at), c.kv_heads * c.group, c.head_dim))
    q = s.q[rows].astype(np.float64).reshape(out.shape)
    for h in range(c.kv_heads * c.group):
        cut = slice(h // c.group * c.head_dim, (h // c.group + 1) * c.head_dim)
        scores = q[:, h] @ k[:, cut].T * c.scale
        if c.softcap > 0:
            scores = c.softcap * np.tanh(scores / c.softcap)
        scores[hidden] = -np.inf
        p = np.exp(scores - scores.max(1, keepdims=True))
        out[:, h] = p @ v[:, cut] / p.sum(1, keepdims=True)
    return out.reshape(len(at), -1)


def assert_near(got: F32, want: F64, c: Case) -> None:
    # A code of Q8_0 may fall on the other side of a tie than in double precision: one step of it.
    tolerance = 3e-6 * c.spread**3 if c.type == F16 else 2e-3 * c.spread
    assert np.abs(got - want).max() <= tolerance


@pytest.mark.parametrize("kind", [F16, Q8_0])
@pytest.mark.parametrize("head_dim", [8, 16, 64, 80, 96, 128])
def test_attention_of_every_head_dim(isa: str, head_dim: int, kind: int) -> None:
    s = Sequence.make(Case(head_dim=head_dim, type=kind, group=3, seed=head_dim))
    assert_near(s.run([150]), reference(s), s.case)


@pytest.mark.parametrize("group", range(1, 9))
def test_attention_of_every_group(isa: str, group: int) -> None:
    s = Sequence.make(Case(group=group, head_dim=16, length=300, seed=group))
    assert_near(s.run([300]), reference(s), s.case)


@pytest.mark.parametrize("window", [1, 5, 32, 100, 129, 1000])
def test_attention_in_a_window(isa: str, window: int) -> None:
    s = Sequence.make(Case(window=window, length=400, head_dim=16))
    assert_near(s.run([400]), reference(s), s.case)


@pytest.mark.parametrize("softcap", [0.5, 30.0])
def test_attention_with_a_soft_cap(isa: str, softcap: float) -> None:
    s = Sequence.make(Case(softcap=softcap, spread=2.0))
    assert_near(s.run([150]), reference(s), s.case)


def test_attention_of_sharp_scores(isa: str) -> None:
    """Weights from one to far below the least float: the largest shifts of the running maximum."""
    s = Sequence.make(Case(spread=8.0, length=400))
    assert_near(s.run([400]), reference(s), s.case)


def test_attention_over_several_parts(isa: str) -> None:
    s = Sequence.make(Case(length=2500, group=2, head_dim=16, kv_heads=1))
    whole = s.run([2500])
    rows = slice(1000, 2500, 83)
    assert_near(whole[rows], reference(s, rows), s.case)
    for first, n in [(0, 40), (1000, 60), (2040, 300), (2499, 1)]:
        assert np.array_equal(s.attend(first, n, split=True), whole[first : first + n])


def test_a_window_over_several_parts(isa: str) -> None:
    s = Sequence.make(Case(length=2500, window=1100, group=2, head_dim=16, kv_heads=1))
    whole = s.run([2500])
    rows = slice(1000, 2500, 83)
    assert_near(whole[rows], reference(s, rows), s.case)
    for first, n in [(1000, 60), (2030, 300), (2499, 1)]:
        assert np.array_equal(s.attend(first, n, split=True), whole[first : first + n])


@settings(max_examples=40, deadline=None)
@given(
    isa=st.sampled_from(_core.isas()),
    kind=st.sampled_from([F16, Q8_0]),
    head_dim=st.sampled_from([8, 16, 64, 80, 96, 128]),
    group=st.integers(1, 8),
    window=st.sampled_from([0, 0, 3, 33, 70, 200]),
    softcap=st.sampled_from([0.0, 0.0, 20.0]),
    chunks=st.lists(st.integers(1, 90), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_results_do_not_depend_on_chunks(
    isa: str, kind: int, head_dim: int, group: int, window: int, softcap: float,
    chunks: list[int], seed: int,
) -> None:  # fmt: skip
    case = Case(
        kv_heads=1, head_dim=head_dim, group=group, type=kind, length=sum(chunks), window=window,
        softcap=softcap, spread=3.0, seed=seed,
    )  # fmt: skip
    with using(isa):
        whole = Sequence.make(case)
        at_once = whole.run([case.length])
        parts = Sequence.make(replace(case))
        assert np.array_equal(parts.run(chunks), at_once)
        one_by_one = np.concatenate([whole.attend(i, 1) for i in range(case.length)])
        assert np.array_equal(one_by_one, at_once)
        assert_near(at_once, reference(whole), replace(case, spread=6.0))


def test_blocks_before_the_window_may_be_gone(isa: str) -> None:
    s = Sequence.make(Case(window=40, length=300))
    whole = s.run([300])
    s.table[: (250 - 40 + 1) // BLOCK] = np.iinfo(np.int32).max
    assert np.array_equal(s.attend(250, 50), whole[250:])


@pytest.mark.parametrize("kind", [F16, Q8_0])
def test_numbers_beyond_half_precision_do_not_spoil_rows_before(isa: str, kind: int) -> None:
    s = Sequence.make(Case(type=kind, length=64))
    before = s.run([64])[:40]
    s.v[40] = 1e9
    s.k[41] = -1e30
    assert np.array_equal(s.run([64])[:40], before)


def test_a_nan_is_not_hidden(isa: str) -> None:
    s = Sequence.make(Case(length=64))
    s.q[50, 3] = np.nan
    out = s.run([64])
    assert np.isnan(out[50, :64]).all()
    assert np.isfinite(out[:50]).all()
    assert np.isfinite(out[51:]).all()


@pytest.mark.parametrize("kind", [F16, Q8_0])
def test_every_kind_of_cache_starts_heads_on_cache_lines(kind: int) -> None:
    for head_dim in (8, 80, 128):
        head, block = _core.rows_kv_bytes(3, head_dim, kind)
        assert head % 64 == 0
        assert block == 3 * head


def test_wrong_shapes_are_refused() -> None:
    s = Sequence.make(Case())
    with pytest.raises(ValueError, match="too short"):
        replace(s, table=s.table[:2]).write(60, 10)
    s.table[1] = 1000
    with pytest.raises(ValueError, match="outside the cache"):
        s.write(32, 1)
