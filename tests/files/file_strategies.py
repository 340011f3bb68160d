"""Random GGUF and safetensors contents for property tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kvant.files.gguf import TensorSpec, Value, ValueType
from kvant.files.gguf_value import ITEM_DTYPES
from kvant.packing.types import BY_ID

#: Text that UTF-8 can hold: no half surrogate pairs.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)

_FLOATS = {ValueType.FLOAT32: 32, ValueType.FLOAT64: 64}


def _scalar(kind: ValueType) -> st.SearchStrategy[Value]:
    content: st.SearchStrategy[Any]
    if kind is ValueType.BOOL:
        content = st.booleans()
    elif kind in _FLOATS:
        content = st.floats(width=_FLOATS[kind], allow_nan=False)  # type: ignore[arg-type]
    else:
        limits = np.iinfo(ITEM_DTYPES[kind])
        content = st.integers(int(limits.min), int(limits.max))
    return st.builds(Value, st.just(kind), content)


def _array(kind: ValueType) -> st.SearchStrategy[Value]:
    items = hnp.arrays(ITEM_DTYPES[kind], st.integers(0, 9))
    return st.builds(Value, st.just(ValueType.ARRAY), items, st.just(kind))


numbers = sorted(ITEM_DTYPES)

values: st.SearchStrategy[Value] = st.one_of(
    st.sampled_from(numbers).flatmap(_scalar),
    st.builds(Value, st.just(ValueType.STRING), texts),
    st.sampled_from(numbers).flatmap(_array),
    st.builds(
        Value, st.just(ValueType.ARRAY), st.lists(texts, max_size=9), st.just(ValueType.STRING)
    ),
)

keys = texts.filter(lambda text: text not in ("", "general.alignment", "split.count"))

metadata = st.dictionaries(keys, values, max_size=8)


@st.composite
def _spec(draw: st.DrawFn, name: str) -> TensorSpec:
    storage = draw(st.sampled_from(sorted(BY_ID.values(), key=lambda t: t.id)))
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    return TensorSpec(name, storage, (*shape[:-1], shape[-1] * storage.block))


@st.composite
def specs(draw: st.DrawFn) -> list[TensorSpec]:
    """Some tensors of any type, named differently."""
    names = draw(
        st.lists(texts.filter(lambda t: 0 < len(t.encode()) < 64), unique=True, max_size=5)
    )
    return [draw(_spec(name)) for name in names]


_DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]

#: Arrays of every dtype safetensors has, scalars and empty ones included.
arrays = st.sampled_from(_DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
)
tensor_names = texts.filter(lambda name: name not in ("", "__metadata__"))
array_files = st.dictionaries(tensor_names, arrays, max_size=5)
