"""IQ3_S: four weights a point of 512, all signs stored, blocks of 256."""

from __future__ import annotations

import numpy as np

from kvant.packing.half import half_bytes, half_values
from kvant.packing.lattice import LatticeGrid
from kvant.packing.lattice_layout import (
    LatticePacking,
    add_signs,
    codes_of_points,
    from_nibbles,
    nibbles,
    sign_bytes,
)
from kvant.packing.spec import Bytes, Codes, Scales, empty_scales

__all__ = ["IQ3_S"]


class IQ3_S(LatticePacking):
    """w = (d sub) level with its sign; levels 1, 3, ... 15, sub 1, 3, ... 31 for 32 weights."""

    name = "IQ3_S"
    bits = 4
    good_for = "three bits with importance: better than Q3_K at its size"
    block_layout = "half d, 64 x 8 + 1 bits of point, 256 signs, 8 x 4-bit scale"
    grid = LatticeGrid(
        table="IQ3_S",
        group=4,
        sub=32,
        levels=(1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0),
        unit=1.0,
        steps=15,
        signs="free",
        widths=(0.095, 0.115, 0.138, 0.165, 0.2, 0.25),
        near=16,
    )

    def layout(self, codes: Codes, scales: Scales) -> Bytes:
        number = self.grid.numbers(codes.reshape(-1, 4)).reshape(-1, 64)
        ninth = np.packbits(number >> 8 != 0, axis=1, bitorder="little")
        return np.concatenate(
            [
                half_bytes(scales["d"]),
                (number & 255).astype(np.uint8),
                ninth,
                sign_bytes(codes, 3),
                nibbles(scales, 8),
            ],
            1,
        )

    def unlayout(self, data: Bytes) -> tuple[Codes, Scales]:
        ninth = np.unpackbits(data[:, 66:74], axis=1, bitorder="little").astype(np.int64)
        codes = codes_of_points(self.grid, data[:, 2:66] | ninth << 8)
        scales = empty_scales(len(data))
        scales["d"] = half_values(data[:, :2])
        from_nibbles(data[:, 106:110], scales, 8)
        return add_signs(codes, data[:, 74:106], 3), scales
