"""The target ``vllm``: a folder in compressed-tensors, which vLLM and transformers load."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kvant.checkpoint import Checkpoint
from kvant.errors import UnsupportedError, UsageError
from kvant.export.companions import companions, config_values, json_bytes
from kvant.export.folder import FolderPlan, source_dtype, write_folder
from kvant.export.notes import source_notes
from kvant.export.overrides import Overrides
from kvant.export.pieces import Piece, hf_pieces
from kvant.export.target import Choices, Level, TargetOptions, TargetResult
from kvant.export.tensors import DTYPES, FloatTensor, GroupTensor, OutTensor, scale_type
from kvant.export.vllm.layout import CompressedLayout
from kvant.export.vllm.levels import LEVELS, SCHEMES, Scheme
from kvant.packing.types import BY_NAME
from kvant.quant.candidate import FLOAT, Candidate
from kvant.version import __version__

__all__ = ["TARGET", "Vllm"]

_NOT_LINEAR = {
    "bert": "vLLM quantises no BERT encoders",
    "gpt2": "GPT-2's matrices are not linears in Hugging Face's model, so nothing finds them there",
}
_FLOATS = ("token_embd", "output", "ffn_gate_inp")
"""Roles that stay floats: what llm-compressor ignores as well, and vLLM's kernels expect so."""

_FUSED = {
    "qkv_proj": ("attn_q", "attn_k", "attn_v"),
    "gate_up_proj": ("ffn_gate", "ffn_up"),
}
"""Linears that vLLM runs as one, under that name: they have to be stored alike."""


class Vllm:
    """Writes what llm-compressor does; unquantised, a Hugging Face folder."""

    name = "vllm"

    def levels(self) -> Sequence[Level]:
        """See `kvant.export.target.Target.levels`."""
        return LEVELS

    def choices(
        self, checkpoint: Checkpoint, levels: Sequence[str], options: TargetOptions
    ) -> Choices:
        """See `kvant.export.target.Target.choices`.

        Linears that vLLM fuses go together, and experts of all layers, which it runs as "Linear".
        """
        _refuse_unsupported(checkpoint)
        dtype = DTYPES[options.dtype or source_dtype(checkpoint)]
        schemes = [SCHEMES[name] for name in levels]
        if len({s.format for s in schemes}) > 1:
            raise UsageError(
                "Levels of one folder share their storage: name only one of "
                f"{', '.join(sorted({s.format for s in schemes}))} (--packings)."
            )
        sizes: dict[str, dict[str, int]] = {}
        found: dict[str, tuple[Candidate, ...]] = {}
        for piece in hf_pieces(checkpoint):
            if not _is_linear(piece):
                continue
            own = [_candidate(piece, s, dtype) for s in schemes if s.fits(piece.columns)]
            nbytes = piece.rows * piece.columns * BY_NAME[dtype].block_bytes
            own.append(Candidate(FLOAT, piece.weight.stored.type.name, nbytes))
            known = sizes.setdefault(piece.canonical, {})
            for c in own:  # experts are pieces of one tensor
                known[c.name] = known.get(c.name, 0) + c.nbytes
            own = [replace(c, nbytes=known[c.name]) for c in own]
            found[piece.canonical] = tuple(sorted(own, key=lambda c: (c.name == FLOAT, c.nbytes)))
        together = [tuple(names) for names in _fused(checkpoint).values()]
        experts = tuple(n for n in found if len(checkpoint.weights[n].shape) == 3)
        return Choices(found, (*together, *([experts] if experts else [])), plain=True)

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
                *_experts_alike(pieces, schemes),
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
    _refuse_unsupported(checkpoint)
    usual = SCHEMES[level]
    alike = [s.name for s in SCHEMES.values() if s.format == usual.format]
    overrides = Overrides.parse(options.overrides, (*alike, FLOAT), options.mixture)
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
    _refuse_mixed(checkpoint, pieces, found)
    if not found:
        raise UsageError(
            f"Level {level} fits no linear of this model: groups of {usual.group} divide no row. "
            "Choose a level with smaller groups."
        )
    return found


def _refuse_unsupported(checkpoint: Checkpoint) -> None:
    why = _NOT_LINEAR.get(checkpoint.architecture.name)
    if why is not None:
        raise UnsupportedError(
            f"{checkpoint.path}: cannot be quantised for vLLM: {why}. Write it unquantised "
            "(`kvant convert --to vllm`), or choose another target."
        )


def _fused(checkpoint: Checkpoint) -> dict[tuple[int | None, str], list[str]]:
    """Canonical names of linears that vLLM fuses, by layer and the name it gives them."""
    found: dict[tuple[int | None, str], list[str]] = {}
    for fused, roles in _FUSED.items():
        for name, ref in checkpoint.graph.weights.items():
            if ref.role in roles and len(ref.shape) == 2:
                found.setdefault((ref.layer, fused), []).append(name)
    return {key: names for key, names in found.items() if len(names) > 1}


def _refuse_mixed(
    checkpoint: Checkpoint, pieces: Sequence[Piece], schemes: dict[str, Scheme]
) -> None:
    """Raise UsageError where linears that vLLM fuses are not stored alike."""
    by_name = {p.canonical: schemes.get(p.name) for p in pieces if p.expert is None}
    for (_, fused), names in _fused(checkpoint).items():
        kinds = {name: getattr(by_name[name], "name", FLOAT) for name in names}
        if len(set(kinds.values())) > 1:
            said = ", ".join(f"{name}={kind}" for name, kind in kinds.items())
            raise UsageError(
                f"vLLM runs {', '.join(_FUSED[fused])} of a layer as one {fused}, so they have to "
                f"be stored alike, got {said}. Give --tensor an expression that finds all of them."
            )


def _candidate(piece: Piece, scheme: Scheme, dtype: str) -> Candidate:
    grid = scheme.grid(piece.columns, scale_type(dtype))
    outs = CompressedLayout(scheme.format).outs(piece, grid)
    return Candidate(scheme.name, grid, sum(o.nbytes for o in outs))


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
    # Experts are found under "Linear" alone.
    of_experts = (schemes[p.name] for p in pieces if p.expert is not None and p.name in schemes)
    usual = next(of_experts, usual)
    for scheme in dict.fromkeys(s for s in schemes.values() if s != usual):
        names = _with_fused([_path(p) for p in pieces if schemes.get(p.name) == scheme])
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


def _with_fused(paths: Sequence[str]) -> list[str]:
    """With the names of what vLLM fuses: it looks for those, then for the class ("Linear"), and
    only then for members."""
    fused = {"q_proj": "qkv_proj", "gate_proj": "gate_up_proj"}
    found = []
    for path in paths:
        parent, _, last = path.rpartition(".")
        if last in fused:
            found.append(f"{parent}.{fused[last]}")
        found.append(path)
    return found


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


def _experts_alike(pieces: Sequence[Piece], schemes: dict[str, Scheme]) -> list[str]:
    """vLLM makes one matrix of a layer's experts; transformers takes them as they are."""
    experts = [p for p in pieces if p.expert is not None and _is_linear(p)]
    if len({schemes.get(p.name) for p in experts}) <= 1:
        return []
    names = sorted({p.canonical for p in experts})
    listed = ", ".join(names[:4]) + (" …" if len(names) > 4 else "")
    return [
        "vLLM joins the experts of a layer and refuses to load different levels: "
        f"{listed}. Give them one level; transformers loads them as they are."
    ]


TARGET = Vllm()
