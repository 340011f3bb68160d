"""The target ``mlx``: a folder that mlx-lm and mlx-swift load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvant.checkpoint import Checkpoint
from kvant.errors import UsageError
from kvant.export.companions import companions, config_values, json_bytes
from kvant.export.folder import FolderPlan, source_dtype, write_folder
from kvant.export.mlx.layout import MlxLayout
from kvant.export.mlx.levels import BASES, LEVELS, Base, base_of, config_of
from kvant.export.mlx.names import check_architecture, mlx_pieces
from kvant.export.notes import source_notes
from kvant.export.overrides import Overrides
from kvant.export.pieces import Piece
from kvant.export.target import Level, TargetOptions, TargetResult
from kvant.export.tensors import DTYPES, FloatTensor, GroupTensor, OutTensor, scale_type

__all__ = ["TARGET", "Mlx"]


class Mlx:
    """Writes what ``mlx_lm.convert`` does: to the bit where the plain formula is asked for."""

    name = "mlx"

    def levels(self) -> Sequence[Level]:
        """See `kvant.export.target.Target.levels`."""
        return LEVELS

    def write(
        self, checkpoint: Checkpoint, out: Path, level: str | None, options: TargetOptions
    ) -> TargetResult:
        """See `kvant.export.target.Target.write`."""
        if options.settings:
            raise UsageError(f"Target mlx has no setting {next(iter(options.settings))!r}.")
        check_architecture(checkpoint)
        dtype = options.dtype or source_dtype(checkpoint)
        pieces = mlx_pieces(checkpoint)
        bases = _bases(checkpoint, pieces, level, options)
        config = _config(checkpoint, dtype, level, bases)
        files, notes = companions(checkpoint)
        tensors = [_tensor(p, bases.get(p.name), DTYPES[dtype], options) for p in pieces]
        plan = FolderPlan(
            tensors=tensors,
            files={"config.json": json_bytes(config), **files},
            metadata={"format": "mlx"},
            index={"total_parameters": checkpoint.parameters},
            always_index=True,
            notes=(*source_notes(checkpoint, level, DTYPES[dtype]), *notes, *_left(tensors, level)),
        )
        return write_folder(checkpoint, out, plan, options)


def _bases(
    checkpoint: Checkpoint, pieces: Sequence[Piece], level: str | None, options: TargetOptions
) -> dict[str, Base]:
    """What each quantised matrix is stored as, by the name of its tensor."""
    overrides = Overrides.parse(options.overrides, (*BASES, "float"))
    if level is None:
        if options.overrides:
            raise UsageError("--tensor is for quantised models; give a level, too.")
        return {}
    found = {}
    for piece in pieces:
        if len(piece.weight.shape) < 2:
            continue
        path = piece.name.removesuffix(".weight")
        layers = checkpoint.config.num_hidden_layers
        arch = checkpoint.architecture.name
        base = base_of(level, path, layers, piece.layer, arch, piece.columns)
        chosen = overrides.find(piece.canonical)
        if chosen is not None:
            base = BASES.get(chosen)
            if base is not None and piece.columns % base.group:
                raise UsageError(
                    f"Tensor {piece.canonical} has rows of {piece.columns} weights, which groups "
                    f"of {base.group} do not divide; choose a level with smaller groups for it."
                )
        if base is not None:
            found[piece.name] = base
    overrides.refuse_unused()
    if not found:
        raise UsageError(
            f"Level {level} fits no matrix of this model: no row is whole groups of weights. "
            "Choose a level with smaller groups."
        )
    return found


def _config(
    checkpoint: Checkpoint, dtype: str, level: str | None, bases: dict[str, Base]
) -> dict[str, object]:
    config = config_values(checkpoint, dtype, complete=True)
    if checkpoint.architecture.name == "gpt2":
        config.setdefault("n_ctx", checkpoint.config.max_position_embeddings)
    if level is None:
        return config
    # What most matrices are stored as is said once, what differs by the module's path.
    counts: dict[Base, int] = {}
    for base in bases.values():
        counts[base] = counts.get(base, 0) + 1
    usual = BASES.get(level) or max(counts, key=lambda base: counts[base])
    said: dict[str, object] = config_of(usual)
    for name, base in bases.items():
        if base != usual:
            said[name.removesuffix(".weight")] = config_of(base)
    return {**config, "quantization": said, "quantization_config": said}


def _tensor(piece: Piece, base: Base | None, dtype: str, options: TargetOptions) -> OutTensor:
    if base is None:
        return FloatTensor(piece, dtype)
    importance = None
    if options.importance is not None:
        importance = options.importance.for_tensor(piece.canonical)
    return GroupTensor(
        piece,
        base.grid(scale_type(dtype)),
        MlxLayout(),
        base.name,
        importance,
        plain=options.importance is None,
    )


def _left(tensors: Sequence[OutTensor], level: str | None) -> list[str]:
    if level is None:
        return []
    odd = [t for t in tensors if isinstance(t, FloatTensor) and len(t.piece.weight.shape) > 1]
    if not odd:
        return []
    names = ", ".join(t.piece.canonical for t in odd[:4]) + (" …" if len(odd) > 4 else "")
    return [
        f"Left as floats, because groups do not divide their rows or --tensor says so: {names}."
    ]


TARGET = Mlx()
