"""GPT-2's way to write any byte as one printable character, and back.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2:
BPE over bytes; printable Latin-1 characters stand for themselves, the other 68 bytes take the
code points from 256 on, in order (so a space is ``Ġ``, U+0120).
"""

from __future__ import annotations

__all__ = ["BYTE_CHARACTERS", "CHARACTER_BYTES", "decode_bytes"]


def _alphabet() -> str:
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (b for b in range(256) if b not in printable)
    moved = {b: 256 + i for i, b in enumerate(others)}
    return "".join(chr(moved.get(b, b)) for b in range(256))


#: 256 characters: number b stands for byte b.
BYTE_CHARACTERS = _alphabet()
#: Character -> the byte it stands for.
CHARACTER_BYTES = {c: b for b, c in enumerate(BYTE_CHARACTERS)}


def decode_bytes(token: str) -> bytes | None:
    """The bytes ``token`` stands for; None where a character is not of the alphabet."""
    try:
        return bytes([CHARACTER_BYTES[c] for c in token])
    except KeyError:
        return None
