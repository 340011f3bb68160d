"""llama-quantize's choice of tensor types: the tool itself where it is built, and its rules retold.

The rules are those of ``src/llama-quant.cpp`` (``llama_tensor_get_type_impl``,
``tensor_type_fallback``) for llama and qwen models without an importance matrix (with one for
the file types of code books, which ask for it), written down as tables a reader can lay beside the
C++. `tool_types` asks the tool, so that a test can show that retelling and tool agree; no wheel
brings that tool, so it is looked for in the folder named by ``KVANT_LLAMA_BIN`` and on the path.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FILE_TYPES", "Facts", "expected_type", "find_tool", "tool_types"]

FILE_TYPES = {
    "F32": (0, "F32"),
    "F16": (1, "F16"),
    "Q4_0": (2, "Q4_0"),
    "Q4_1": (3, "Q4_1"),
    "Q8_0": (7, "Q8_0"),
    "Q5_0": (8, "Q5_0"),
    "Q5_1": (9, "Q5_1"),
    "Q2_K": (10, "Q2_K"),
    "Q3_K_S": (11, "Q3_K"),
    "Q3_K_M": (12, "Q3_K"),
    "Q3_K_L": (13, "Q3_K"),
    "Q4_K_S": (14, "Q4_K"),
    "Q4_K_M": (15, "Q4_K"),
    "Q5_K_S": (16, "Q5_K"),
    "Q5_K_M": (17, "Q5_K"),
    "Q6_K": (18, "Q6_K"),
    "IQ2_XXS": (19, "IQ2_XXS"),
    "IQ2_XS": (20, "IQ2_XS"),
    "Q2_K_S": (21, "Q2_K"),
    "IQ3_XS": (22, "IQ3_S"),
    "IQ3_XXS": (23, "IQ3_XXS"),
    "IQ1_S": (24, "IQ1_S"),
    "IQ4_NL": (25, "IQ4_NL"),
    "IQ3_S": (26, "IQ3_S"),
    "IQ3_M": (27, "IQ3_S"),
    "IQ2_S": (28, "IQ2_XS"),
    "IQ2_M": (29, "IQ2_S"),
    "IQ4_XS": (30, "IQ4_XS"),
    "IQ1_M": (31, "IQ1_M"),
    "BF16": (32, "BF16"),
    "TQ1_0": (36, "TQ1_0"),
    "TQ2_0": (37, "TQ2_0"),
    "MXFP4_MOE": (38, "Q8_0"),
    "Q1_0": (40, "Q1_0"),
}
"""Name of a file type: its number (``enum llama_ftype``) and default tensor type."""

_BLOCK = {"F32": 1, "F16": 1, "BF16": 1}
_BLOCK |= dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"), 32)
_BLOCK |= dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"), 256)
_CODEBOOKS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
_BLOCK |= dict.fromkeys(_CODEBOOKS, 256) | {"IQ4_NL": 32, "IQ4_XS": 256}
_BLOCK |= {"TQ1_0": 256, "TQ2_0": 256, "MXFP4": 32, "Q1_0": 128}
_FEW_BITS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M")


@dataclass(frozen=True)
class Facts:
    """What the tool knows about a model. ``gqa`` is queries a key head, by integer division."""

    arch: str
    layers: int
    gqa: int
    tied: bool
    experts: int = 0

    @property
    def is_70b(self) -> bool:
        """``LLM_TYPE_70B``: llama of 80 layers that shares keys, or any qwen2 of 80 layers."""
        return self.layers == 80 and (
            self.arch == "qwen2" or (self.arch == "llama" and self.gqa != 1)
        )


def expected_type(file_type: str, name: str, shape: tuple[int, ...], facts: Facts) -> str:
    """The type of a tensor of row-major ``shape`` whose source is F32 in vectors."""
    default = FILE_TYPES[file_type][1]
    kept = ("position_embd.weight", "token_types.weight")
    if len(shape) < 2 or "ffn_gate_inp.weight" in name or name in kept:
        return "F32"
    if _BLOCK[default] == 1:
        return default
    return _fallback(_standard(file_type, default, name, shape[-1], facts), shape[-1])


def _fallback(kind: str, row: int) -> str:
    if row % _BLOCK[kind] == 0:
        return kind
    match kind:
        case "Q1_0" | "Q2_K" | "Q3_K" | "TQ1_0" | "TQ2_0":
            smaller = "Q4_0"
        case "Q4_K":
            smaller = "Q5_0"
        case "Q5_K":
            smaller = "Q5_1"
        case "Q6_K":
            smaller = "Q8_0"
        case _ if kind in (*_CODEBOOKS, "IQ4_XS"):
            smaller = "IQ4_NL"
        case _:
            return "F16"
    return smaller if row % 32 == 0 else "F16"


def _standard(file_type: str, default: str, name: str, row: int, facts: Facts) -> str:
    if name == "output.weight" or (name == "token_embd.weight" and facts.tied):
        if row % _BLOCK[default]:
            return "Q8_0"
        if file_type in (*_FEW_BITS, "IQ3_XXS"):
            return "Q5_K"
        return default if default == "Q8_0" else "Q6_K"
    if file_type == "MXFP4_MOE":
        return "MXFP4" if "_exps." in name else "Q8_0"
    if name == "token_embd.weight":
        if default in ("TQ1_0", "TQ2_0"):
            return "Q4_K"
        few = {"IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S", "IQ3_XXS": "IQ3_S"}
        return few.get(file_type, "Q2_K" if file_type in _FEW_BITS else default)
    layer = re.match(r"blk\.(\d+)\.", name)
    i, n = int(layer[1]) if layer else 0, facts.layers
    if file_type in _FEW_BITS:
        return _few_bits(file_type, default, name, i, facts)
    if facts.experts == 8 and ("attn_v.weight" in name or "attn_k.weight" in name):
        return "Q8_0"
    if facts.experts == 8 and "attn_output.weight" in name:
        lifted = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS")
        lifted += ("IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M")
        return "Q5_K" if file_type in lifted else default
    if "attn_v.weight" in name or "attn_qkv.weight" in name:
        kind = _attn_v(file_type, default, i, facts)
        return "Q5_K" if facts.is_70b and kind in ("Q3_K", "Q4_K") else kind
    if "attn_output.weight" in name:
        lifted = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}
        return (lifted | {"IQ3_XXS": "IQ3_S", "IQ3_M": "Q4_K"}).get(file_type, default)
    if "attn_q.weight" in name or "attn_k.weight" in name:
        return {"IQ3_XS": "IQ3_XXS", "IQ3_XXS": "IQ2_S"}.get(file_type, default)
    if "ffn_gate" in name or "ffn_up" in name:
        return "IQ3_XXS" if file_type == "IQ3_XS" and n // 8 <= i < 7 * n // 8 else default
    if "ffn_down" in name:
        return _ffn_down(file_type, default, i, facts)
    return default


def _few_bits(file_type: str, default: str, name: str, i: int, facts: Facts) -> str:
    lifted = "IQ3_S" if file_type in ("IQ2_S", "IQ2_M") else "Q2_K"
    if "attn_v.weight" in name or "attn_qkv.weight" in name:
        return "Q4_K" if facts.gqa >= 4 or facts.experts >= 4 else lifted
    if facts.experts == 8 and ("attn_k.weight" in name or "attn_output.weight" in name):
        return "Q4_K" if "attn_k" in name else "Q5_K"
    if "ffn_down" in name:
        return lifted if i < facts.layers // 8 else default
    if "attn_output.weight" in name:
        mixed = {"IQ1_S": "IQ2_XXS", "IQ1_M": "IQ2_XXS", "IQ2_S": "IQ3_S", "IQ2_M": "IQ3_S"}
        return mixed.get(file_type, default)
    return default


def _more(i: int, n: int) -> bool:
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _attn_v(file_type: str, default: str, i: int, facts: Facts) -> str:
    match file_type:
        case "Q2_K":
            return "Q4_K" if facts.gqa >= 4 else "Q3_K"
        case "Q2_K_S":
            return "Q4_K" if facts.gqa >= 4 else "Q2_K"
        case "IQ3_XXS" | "IQ3_XS" | "IQ3_S":
            return "Q4_K" if facts.gqa >= 4 else default
        case "IQ4_NL" | "IQ4_XS":
            return "Q5_K" if facts.gqa >= 4 else default
        case "IQ3_M":
            return "Q4_K"
        case "Q3_K_M":
            return "Q5_K" if i < 2 else "Q4_K"
        case "Q3_K_L":
            return "Q5_K"
        case "Q4_K_S":
            return "Q5_K" if i < 4 else "Q4_K"
        case "Q4_K_M" | "Q5_K_M":
            return "Q6_K" if _more(i, facts.layers) else default
    return default


def _ffn_down(file_type: str, default: str, i: int, facts: Facts) -> str:
    n = facts.layers
    match file_type:
        case "Q2_K":
            return "Q3_K"
        case "Q2_K_S":
            return "Q4_K" if i < n // 8 else "Q2_K"
        case "IQ3_M":
            return "Q4_K" if i < n // 8 or (facts.experts == 8 and _more(i, n)) else default
        case "IQ4_NL" | "IQ4_XS":
            return "Q5_K" if i < n // 8 else default
        case "Q3_K_M":
            return "Q5_K" if i < n // 16 else "Q4_K"
        case "Q3_K_L":
            return "Q5_K"
        case "Q4_K_S":
            return "Q5_K" if i < n // 8 else "Q4_K"
        case "Q4_K_M" | "Q5_K_M":
            return "Q6_K" if _more(i, n) else default
    return default


def find_tool() -> Path | None:
    """``llama-quantize``; None where it is not built."""
    folder = os.environ.get("KVANT_LLAMA_BIN")
    found = shutil.which("llama-quantize", path=folder) if folder else None
    found = found or shutil.which("llama-quantize")
    return Path(found) if found else None


def _some_matrix() -> bytes:
    """An importance matrix in the tool's older format: one entry, of one column."""
    name, text = b"blk.0.ffn_up.weight", b"nothing"
    entry = struct.pack("<i", len(name)) + name + struct.pack("<iif", 1, 1, 1.0)
    return struct.pack("<i", 1) + entry + struct.pack("<ii", 1, len(text)) + text


def tool_types(tool: Path, path: Path, file_type: str) -> dict[str, str]:
    """What ``llama-quantize --dry-run`` would make of each tensor of ``path``."""
    command = [str(tool), "--dry-run", "--allow-requantize", str(path), file_type]
    if FILE_TYPES[file_type][1] in _CODEBOOKS:
        matrix = path.with_name("some.imatrix")
        matrix.write_bytes(_some_matrix())
        command[2:2] = ["--imatrix", str(matrix)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    line = r"^\[ *\d+/ *\d+\] +(\S+) +- \[.*?\], type = +(\w+), size = .*?(?:\((\w+)\))?$"
    found = re.findall(line, done.stdout + done.stderr, re.MULTILINE)
    return {name: (new or old).upper() for name, old, new in found}
