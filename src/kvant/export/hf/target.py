"""The target ``hf``: a Hugging Face folder with floats, from any source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvant.checkpoint import Checkpoint
from kvant.errors import UsageError
from kvant.export.companions import companions, config_values, json_bytes
from kvant.export.folder import FolderPlan, source_dtype, write_folder
from kvant.export.notes import source_notes
from kvant.export.pieces import hf_pieces
from kvant.export.target import Level, TargetOptions, TargetResult
from kvant.export.tensors import DTYPES, FloatTensor

__all__ = ["TARGET", "HuggingFace"]


class HuggingFace:
    """Writes what transformers reads: config.json, safetensors, tokenizer."""

    name = "hf"

    def levels(self) -> Sequence[Level]:
        """None: quantised folders are the other targets'."""
        return ()

    def write(
        self, checkpoint: Checkpoint, out: Path, level: str | None, options: TargetOptions
    ) -> TargetResult:
        """See `kvant.export.target.Target.write`."""
        if level is not None or options.overrides or options.settings:
            raise UsageError("Target hf holds floats only and has no settings but --dtype.")
        dtype = options.dtype or source_dtype(checkpoint)
        files, notes = companions(checkpoint)
        plan = FolderPlan(
            tensors=[FloatTensor(piece, DTYPES[dtype]) for piece in hf_pieces(checkpoint)],
            files={"config.json": json_bytes(config_values(checkpoint, dtype)), **files},
            metadata={"format": "pt"},
            notes=(*source_notes(checkpoint, None, DTYPES[dtype]), *notes),
        )
        return write_folder(checkpoint, out, plan, options)


TARGET = HuggingFace()
