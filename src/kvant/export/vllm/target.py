"""The target ``vllm``: a folder in compressed-tensors, which vLLM and transformers load."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kvant.checkpoint import Checkpoint
from kvant.errors import UnsupportedError, UsageError
from kvant.export.companions import companions, config_values, json_bytes
from kvant.export.folder import FolderPlan, source_dtype, write_folder
from kvant.export.notes import source_notes
from kvant.export.overrides import Overrides
from kvant.export.pieces import Piece, hf_pieces
from kvant.export.target import Level, TargetOptions, TargetResult
from kvant.export.tensors import DTYPES, FloatTensor, GroupTensor, OutTensor, scale_type
from kvant.export.vllm.layout import CompressedLayout
from kvant.export.vllm.levels import LEVELS, SCHEMES, Scheme
from kvant.version import __version__

__all__ = ["TARGET", "Vllm"]

_NOT_LINEAR = {
    "bert": "vLLM quantises no BERT encoders",
    "gpt2": "GPT-2's matrices are not linears in Hugging Face's model, so nothing finds them there",
}
_FLOATS = ("token_embd", "output", "ffn_gate_inp")
"""Roles that stay floats: what llm-compressor ignores as well, and vLLM's kernels expect so."""

_JOINED = {
    **dict.fromkeys(("attn_q", "attn_k", "attn_v"), "queries, keys and values"),
    **dict.fromkeys(("ffn_gate", "ffn_up"), "gate and up"),
}
"""Roles whose matrices vLLM makes one of while it loads."""


class Vllm:
    """Writes what llm-compressor does; unquantised, a Hugging Face folder."""

    name = "vllm"

    def levels(self) -> Sequence[Level]:
        """See `kvant.export.target.Target.levels`."""
        return LEVELS

    def write(
        self, checkpoint: Checkpoint, out: Path, level: str | None, options: TargetOptions
    ) -> TargetResult:
        """See `kvant.export.target.Target.write`."""
        if options.settings:
            raise UsageError(f"Target vllm has no setting {next(iter(options.settings))!r}.")
        dtype = options.dtype or source_dtype(checkpoint)
        pieces = hf_pieces(checkpoint)
        schemes = _schemes(checkpoint, pieces, level, options)
        config = config_values(checkpoint, dtype)
        if level is not None:
            config["quantization_config"] = _quantisation(pieces, SCHEMES[level], schemes)
        files, notes = companions(checkpoint)
        tensors = [_tensor(p, schemes.get(p.name), DTYPES[dtype], options) for p in pieces]
        plan = FolderPlan(
            tensors=tensors,
            files={"config.json": json_bytes(config), **files},
            metadata={"format": "pt"},
            notes=(
                *source_notes(checkpoint, level, DTYPES[dtype]),
                *notes,
                *_odd(pieces, schemes, level),
                *_joined(pieces, schemes),
            ),
        )
        return write_folder(checkpoint, out, plan, options)


def _schemes(
    checkpoint: Checkpoint, pieces: Sequence[Piece], level: str | None, options: TargetOptions
) -> dict[str, Scheme]:
    """What each quantised linear is stored as, by the name of its tensor."""
    if level is None:
        if options.overrides:
            raise UsageError("--tensor is for quantised models; give a level, too.")
        return {}
    why = _NOT_LINEAR.get(checkpoint.architecture.name)
    if why is not None:
        raise UnsupportedError(
            f"{checkpoint.path}: cannot be quantised for vLLM: {why}. Write it unquantised "
            "(`kvant convert --to vllm`), or choose another target."
        )
    usual = SCHEMES[level]
    alike = [s.name for s in SCHEMES.values() if s.format == usual.format]
    overrides = Overrides.parse(options.overrides, (*alike, "float"))
    found = {}
    for piece in pieces:
        if not _is_linear(piece):
            continue
        chosen = overrides.find(piece.canonical)
        scheme = usual if chosen is None else SCHEMES.get(chosen)
        if scheme is None:
            continue
        if scheme.fits(piece.columns):
            found[piece.name] = scheme
        elif chosen is not None:
            raise UsageError(
                f"Tensor {piece.canonical} has rows of {piece.columns} weights, which groups of "
                f"{scheme.group} do not divide; choose a level with smaller groups for it."
            )
    overrides.refuse_unused()
    if not found:
        raise UsageError(
            f"Level {level} fits no linear of this model: groups of {usual.group} divide no row. "
            "Choose a level with smaller groups."
        )
    return found


def _is_linear(piece: Piece) -> bool:
    two = len(piece.weight.shape) == 2
    return two and piece.name.endswith(".weight") and piece.role not in _FLOATS


def _quantisation(
    pieces: Sequence[Piece], usual: Scheme, schemes: dict[str, Scheme]
) -> dict[str, object]:
    """``quantization_config`` as vLLM reads it."""
    ignore = ["lm_head"]
    ignore += sorted({_path(p) for p in pieces if p.role == "ffn_gate_inp"})
    ignore += [_path(p) for p in pieces if _is_linear(p) and p.name not in schemes]
    groups: dict[str, object] = {}
    for scheme in dict.fromkeys(s for s in schemes.values() if s != usual):
        names = [_path(p) for p in pieces if schemes.get(p.name) == scheme]
        targets = [f"re:^{re.escape(name)}$" for name in names]
        groups[f"group_{len(groups) + 1}"] = scheme.config(targets)
    if usual in schemes.values():
        groups = {"group_0": usual.config(["Linear"]), **groups}
    return {
        "quant_method": "compressed-tensors",
        "format": usual.format,
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": ignore,
        "config_groups": groups,
        "producer": f"kvant {__version__}",
    }


def _path(piece: Piece) -> str:
    return piece.name.removesuffix(".weight")


def _tensor(piece: Piece, scheme: Scheme | None, dtype: str, options: TargetOptions) -> OutTensor:
    if scheme is None:
        return FloatTensor(piece, dtype)
    importance = None
    if options.importance is not None:
        importance = options.importance.for_tensor(piece.canonical)
        if importance is not None and importance.ndim == 2 and piece.expert is not None:
            importance = importance[piece.expert]
    grid = scheme.grid(piece.columns, scale_type(dtype))
    plain = options.importance is None
    return GroupTensor(piece, grid, CompressedLayout(scheme.format), scheme.name, importance, plain)


def _odd(pieces: Sequence[Piece], schemes: dict[str, Scheme], level: str | None) -> list[str]:
    odd = [p.canonical for p in pieces if _is_linear(p) and p.name not in schemes]
    if level is None or not odd:
        return []
    names = ", ".join(odd[:4]) + (" …" if len(odd) > 4 else "")
    return [f"Left as floats (groups do not divide the rows, or --tensor says so): {names}."]


def _joined(pieces: Sequence[Piece], schemes: dict[str, Scheme]) -> list[str]:
    """What vLLM makes one matrix of must be stored alike; transformers does not mind."""
    parts: dict[tuple[int | None, str], list[Piece]] = {}
    for piece in filter(_is_linear, pieces):
        what = "experts" if piece.expert is not None else _JOINED.get(piece.role)
        if what is not None:
            parts.setdefault((piece.layer, what), []).append(piece)
    odd = [
        (what, sorted({p.canonical for p in found}))
        for (_, what), found in parts.items()
        if len({schemes.get(p.name) for p in found}) > 1
    ]
    if not odd:
        return []
    what, names = odd[0]
    more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
    return [
        f"vLLM joins the {what} of a layer and refuses to load different levels: "
        f"{', '.join(names)}{more}. Give them one level; transformers loads them as they are."
    ]


TARGET = Vllm()
