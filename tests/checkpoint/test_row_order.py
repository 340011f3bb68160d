"""The order of rotated rows: inverse, and what each order means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint.small_models import LLAMA, write_folder
from kvant.arch import RowOrder
from kvant.checkpoint import Rotary, Weight, open_checkpoint, rotary_row_order
from kvant.files.tensor import StoredTensor
from kvant.packing.types import BY_NAME

orders = st.sampled_from(["half", "interleaved"])
shapes = st.tuples(st.integers(1, 6), st.integers(1, 8))


@given(shape=shapes, frm=orders, to=orders)
def test_there_and_back(shape: tuple[int, int], frm: RowOrder, to: RowOrder) -> None:
    heads, rows = shape[0], 2 * shape[0] * shape[1]
    data = np.random.default_rng(0).permutation(rows)
    there = data[rotary_row_order(rows, heads, frm, to)]
    assert sorted(there) == sorted(data)
    np.testing.assert_array_equal(there[rotary_row_order(rows, heads, to, frm)], data)


@given(shape=shapes)
def test_pairs_lie_side_by_side_when_interleaved(shape: tuple[int, int]) -> None:
    heads, pairs = shape
    names = [f"{h}.{p}.{m}" for h in range(heads) for m in "ab" for p in range(pairs)]  # half
    wanted = [f"{h}.{p}.{m}" for h in range(heads) for p in range(pairs) for m in "ab"]
    index = rotary_row_order(len(names), heads, "half", "interleaved")
    assert [names[i] for i in index] == wanted


def test_the_example() -> None:
    assert rotary_row_order(8, 2, "half", "interleaved").tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def _weight(tmp_path: Path, shape: tuple[int, ...], rotary: Rotary | None) -> Weight:
    data = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    path = tmp_path / "data"
    path.write_bytes(b"pad!" + data.tobytes())
    return Weight("w", StoredTensor("w", BY_NAME["F32"], shape, path, 4), rotary)


@pytest.mark.parametrize("stored", ["half", "interleaved"])
@pytest.mark.parametrize("wanted", ["half", "interleaved"])
def test_chunks_equal_the_whole(tmp_path: Path, stored: RowOrder, wanted: RowOrder) -> None:
    weight = _weight(tmp_path, (24, 5), Rotary(3, stored))
    assert weight.row_step == 8
    whole = weight.read_f32(order=wanted)
    index = rotary_row_order(24, 3, stored, wanted)
    np.testing.assert_array_equal(whole[:, 0] / 5, index)
    with weight.open() as fd:
        parts = [weight.read_rows_f32(fd, a, a + 8, order=wanted) for a in (0, 8, 16)]
        raw = weight.read_rows(fd, 8, 24, order=wanted)
        assert weight.read_rows_f32(fd, 8, 8).shape == (0, 5)
        with pytest.raises(ValueError, match="multiples of 8"):
            weight.read_rows(fd, 0, 4)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(raw.view(np.float32), whole[8:])


def test_a_bias_is_reordered_like_its_matrix(tmp_path: Path) -> None:
    weight = _weight(tmp_path, (24,), Rotary(3, "interleaved"))
    assert weight.row_step == 1
    index = rotary_row_order(24, 3, "interleaved", "half")
    np.testing.assert_array_equal(weight.read_f32(), index)


def test_other_weights_stay(tmp_path: Path) -> None:
    weight = _weight(tmp_path, (4, 5), None)
    assert weight.row_step == 1
    np.testing.assert_array_equal(weight.read_f32(order="interleaved"), weight.read_f32())


def test_only_queries_and_keys_are_marked(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path / "m", {**LLAMA, "attention_bias": False}))
    marked = {name.split(".")[2] for name, w in checkpoint.weights.items() if w.rotary}
    assert marked == {"attn_q", "attn_k"}
    assert checkpoint.weights["blk.1.attn_k.weight"].rotary == Rotary(2, "half")
