"""Which packings make use of importance is said by the packings, and it is true of each."""

from __future__ import annotations

import numpy as np
import pytest

from kvant.export.gguf.keys import SEARCHED
from kvant.packing import Packing, all_packings, dequantize
from kvant.quant.pack import pack_rows

by_name = pytest.mark.parametrize("packing", all_packings(), ids=lambda p: p.name)


@by_name
def test_importance_changes_what_is_searched_and_nothing_else(packing: Packing) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 512)).astype(np.float32)
    importance = np.exp(2 * rng.standard_normal(512)).astype(np.float32)
    rows = x.view(np.uint8)
    plain = pack_rows("F32", packing.name, rows, 512)
    weighed = pack_rows("F32", packing.name, rows, 512, importance)
    assert packing.searches == (packing.name in SEARCHED)
    assert packing.searches == bool((plain != weighed).any())
    if packing.searches:
        error = [
            (((dequantize(packing.name, p) - x) ** 2) * importance).sum() for p in (plain, weighed)
        ]
        assert error[1] < error[0]
