"""Every storage type a GGUF file can name: id, block length, block bytes.

This table is what a container reader needs to check sizes and offsets, also for types kvant
cannot decode. The packings kvant does encode and decode are the classes beside this file.

Source: the public GGUF specification and ``ggml.h``'s ``enum ggml_type`` / ``type_traits``.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BY_ID", "BY_NAME", "StorageType"]


@dataclass(frozen=True, slots=True)
class StorageType:
    """How numbers lie in a file: ``block`` elements take ``block_bytes`` bytes."""

    name: str
    id: int
    block: int
    block_bytes: int

    @property
    def bits_per_weight(self) -> float:
        """Bits of storage for one element."""
        return 8 * self.block_bytes / self.block

    def row_bytes(self, row_length: int) -> int:
        """Bytes of one row of ``row_length`` elements (a multiple of ``block``)."""
        return row_length // self.block * self.block_bytes


_TYPES = (
    StorageType("F32", 0, 1, 4),
    StorageType("F16", 1, 1, 2),
    StorageType("Q4_0", 2, 32, 18),
    StorageType("Q4_1", 3, 32, 20),
    StorageType("Q5_0", 6, 32, 22),
    StorageType("Q5_1", 7, 32, 24),
    StorageType("Q8_0", 8, 32, 34),
    StorageType("Q8_1", 9, 32, 36),
    StorageType("Q2_K", 10, 256, 84),
    StorageType("Q3_K", 11, 256, 110),
    StorageType("Q4_K", 12, 256, 144),
    StorageType("Q5_K", 13, 256, 176),
    StorageType("Q6_K", 14, 256, 210),
    StorageType("Q8_K", 15, 256, 292),
    StorageType("IQ2_XXS", 16, 256, 66),
    StorageType("IQ2_XS", 17, 256, 74),
    StorageType("IQ3_XXS", 18, 256, 98),
    StorageType("IQ1_S", 19, 256, 50),
    StorageType("IQ4_NL", 20, 32, 18),
    StorageType("IQ3_S", 21, 256, 110),
    StorageType("IQ2_S", 22, 256, 82),
    StorageType("IQ4_XS", 23, 256, 136),
    StorageType("I8", 24, 1, 1),
    StorageType("I16", 25, 1, 2),
    StorageType("I32", 26, 1, 4),
    StorageType("I64", 27, 1, 8),
    StorageType("F64", 28, 1, 8),
    StorageType("IQ1_M", 29, 256, 56),
    StorageType("BF16", 30, 1, 2),
    StorageType("TQ1_0", 34, 256, 54),
    StorageType("TQ2_0", 35, 256, 66),
    StorageType("MXFP4", 39, 32, 17),
    StorageType("NVFP4", 40, 64, 36),
    StorageType("Q1_0", 41, 128, 18),
    StorageType("Q2_0", 42, 64, 18),
)

BY_NAME: dict[str, StorageType] = {t.name: t for t in _TYPES}
BY_ID: dict[int, StorageType] = {t.id: t for t in _TYPES}
