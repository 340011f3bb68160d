"""llama-quantize's choice of tensor types: the tool itself where it is built, and its rules retold.

The rules are those of ``src/llama-quant.cpp`` (``llama_tensor_get_type_impl``,
``tensor_type_fallback``) for llama and qwen models without an importance matrix, written
down as tables a reader can lay beside the C++. `tool_types` asks the tool, so that a test can show
that retelling and tool agree; no wheel brings that tool, so it is looked for in the folder named by
``KVANT_LLAMA_BIN`` and on the path.
"""

from __future__ import annotations

import os
import re
import shutil
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
    "Q2_K_S": (21, "Q2_K"),
    "BF16": (32, "BF16"),
}
"""Name of a file type: its number (``enum llama_ftype``) and default tensor type."""

_BLOCK = {"F32": 1, "F16": 1, "BF16": 1}
_BLOCK |= dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"), 32)
_BLOCK |= dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"), 256)


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
    if len(shape) < 2 or "ffn_gate_inp.weight" in name or name == "position_embd.weight":
        return "F32"
    if _BLOCK[default] == 1:
        return default
    return _fallback(_standard(file_type, default, name, shape[-1], facts), shape[-1])


def _fallback(kind: str, row: int) -> str:
    if row % _BLOCK[kind] == 0:
        return kind
    match kind:
        case "Q2_K" | "Q3_K":
            smaller = "Q4_0"
        case "Q4_K":
            smaller = "Q5_0"
        case "Q5_K":
            smaller = "Q5_1"
        case "Q6_K":
            smaller = "Q8_0"
        case _:
            return "F16"
    return smaller if row % 32 == 0 else "F16"


def _standard(file_type: str, default: str, name: str, row: int, facts: Facts) -> str:
    if name == "output.weight" or (name == "token_embd.weight" and facts.tied):
        if row % _BLOCK[default]:
            return "Q8_0"
        return default if default == "Q8_0" else "Q6_K"
    layer = re.match(r"blk\.(\d+)\.", name)
    i, n = int(layer[1]) if layer else 0, facts.layers
    if facts.experts == 8 and ("attn_v.weight" in name or "attn_k.weight" in name):
        return "Q8_0"
    if facts.experts == 8 and "attn_output.weight" in name:
        lifted = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M")
        return "Q5_K" if file_type in lifted else default
    if "attn_v.weight" in name or "attn_qkv.weight" in name:
        kind = _attn_v(file_type, default, i, facts)
        return "Q5_K" if facts.is_70b and kind in ("Q3_K", "Q4_K") else kind
    if "attn_output.weight" in name:
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(file_type, default)
    if "ffn_down" in name:
        return _ffn_down(file_type, default, i, n)
    return default


def _more(i: int, n: int) -> bool:
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _attn_v(file_type: str, default: str, i: int, facts: Facts) -> str:
    match file_type:
        case "Q2_K":
            return "Q4_K" if facts.gqa >= 4 else "Q3_K"
        case "Q2_K_S":
            return "Q4_K" if facts.gqa >= 4 else "Q2_K"
        case "Q3_K_M":
            return "Q5_K" if i < 2 else "Q4_K"
        case "Q3_K_L":
            return "Q5_K"
        case "Q4_K_S":
            return "Q5_K" if i < 4 else "Q4_K"
        case "Q4_K_M" | "Q5_K_M":
            return "Q6_K" if _more(i, facts.layers) else default
    return default


def _ffn_down(file_type: str, default: str, i: int, n: int) -> str:
    match file_type:
        case "Q2_K":
            return "Q3_K"
        case "Q2_K_S":
            return "Q4_K" if i < n // 8 else "Q2_K"
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


def tool_types(tool: Path, path: Path, file_type: str) -> dict[str, str]:
    """What ``llama-quantize --dry-run`` would make of each tensor of ``path``."""
    command = [str(tool), "--dry-run", "--allow-requantize", str(path), file_type]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    line = r"^\[ *\d+/ *\d+\] +(\S+) +- \[.*?\], type = +(\w+), size = .*?(?:\((\w+)\))?$"
    found = re.findall(line, done.stdout + done.stderr, re.MULTILINE)
    return {name: (new or old).upper() for name, old, new in found}
