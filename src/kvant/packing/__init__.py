"""How numbers are stored in blocks: one file a packing, specified in NumPy, run in the core."""

from __future__ import annotations

from kvant.errors import UsageError
from kvant.packing.floats import BF16, F16, F32
from kvant.packing.iq1_m import IQ1_M
from kvant.packing.iq1_s import IQ1_S
from kvant.packing.iq2_s import IQ2_S
from kvant.packing.iq2_xs import IQ2_XS
from kvant.packing.iq2_xxs import IQ2_XXS
from kvant.packing.iq3_s import IQ3_S
from kvant.packing.iq3_xxs import IQ3_XXS
from kvant.packing.iq4_nl import IQ4_NL
from kvant.packing.iq4_xs import IQ4_XS
from kvant.packing.mxfp4 import MXFP4
from kvant.packing.native import (
    BadWeight,
    convert_rows,
    dequantize,
    known,
    quantize,
    quantize_weighed,
)
from kvant.packing.nvfp4 import NVFP4
from kvant.packing.q1_0 import Q1_0
from kvant.packing.q2_k import Q2_K
from kvant.packing.q3_k import Q3_K
from kvant.packing.q4_0 import Q4_0
from kvant.packing.q4_1 import Q4_1
from kvant.packing.q4_k import Q4_K
from kvant.packing.q5_0 import Q5_0
from kvant.packing.q5_1 import Q5_1
from kvant.packing.q5_k import Q5_K
from kvant.packing.q6_k import Q6_K
from kvant.packing.q8_0 import Q8_0
from kvant.packing.spec import Packing, PrecisionClass
from kvant.packing.tq1_0 import TQ1_0
from kvant.packing.tq2_0 import TQ2_0

__all__ = [
    "BadWeight",
    "Packing",
    "PrecisionClass",
    "all_packings",
    "convert_rows",
    "dequantize",
    "get",
    "known",
    "quantize",
    "quantize_weighed",
]

_PACKINGS: tuple[Packing, ...] = (
    Q1_0(),
    IQ1_S(),
    TQ1_0(),
    IQ1_M(),
    IQ2_XXS(),
    TQ2_0(),
    IQ2_XS(),
    IQ2_S(),
    Q2_K(),
    IQ3_XXS(),
    Q3_K(),
    IQ3_S(),
    MXFP4(),
    IQ4_XS(),
    NVFP4(),
    Q4_0(),
    IQ4_NL(),
    Q4_K(),
    Q4_1(),
    Q5_0(),
    Q5_K(),
    Q5_1(),
    Q6_K(),
    Q8_0(),
    F16(),
    BF16(),
    F32(),
)


def all_packings() -> tuple[Packing, ...]:
    """Every packing, fewest bits first."""
    return _PACKINGS


def get(name: str) -> Packing:
    """The packing called ``name``, in any case.

    Raises:
        UsageError: there is none.
    """
    for packing in _PACKINGS:
        if packing.name == name.upper():
            return packing
    known_names = ", ".join(p.name for p in _PACKINGS)
    raise UsageError(f"There is no packing called {name!r}; kvant knows {known_names}.")
