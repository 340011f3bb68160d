"""Opening a GGUF file, single or split."""

from __future__ import annotations

from pathlib import Path

from kvant.arch import find_gguf
from kvant.checkpoint.checkpoint import Checkpoint, check_layers, check_unused, match_weights
from kvant.checkpoint.info import info_from_gguf
from kvant.checkpoint.pooling import gguf_pooling
from kvant.errors import UnsupportedError
from kvant.files.gguf import read_gguf_split

__all__ = ["open_gguf"]


def open_gguf(path: Path) -> Checkpoint:
    """Read the header of ``path`` and of the shards beside it; of the data, only rope factors.

    Raises:
        InputError (one of its kinds): what is missing, damaged or not supported.
    """
    file = read_gguf_split(path)
    arch = find_gguf(file)
    if not file.tensors:
        raise UnsupportedError(
            f"{path}: expected a model, got a GGUF file without weights (a vocabulary). "
            "Name the model's file."
        )
    config, ignored = arch.from_gguf(file)
    check_layers(config.num_hidden_layers, len(file.tensors), str(path))
    graph = arch.trace(config)
    names = {name: name for name in graph.weights}
    weights = match_weights(graph, file.tensors, {}, names, arch.gguf_rows, str(path))
    # GGUF files hold the computation and nothing else; llama.cpp refuses unknown tensors too.
    said = arch.extra_tensors(config)
    extra = [name for name in file.tensors if name not in weights and name not in said]
    check_unused(extra, str(path))
    parameters = sum(weight.stored.elements for weight in weights.values())
    return Checkpoint(
        path=path,
        format="gguf",
        architecture=arch,
        config=config,
        graph=graph,
        weights=weights,
        info=info_from_gguf(file, parameters),
        files=tuple(part.path for part in file.parts) or (file.path,),
        ignored=tuple(ignored),
        gguf=file,
        pooling=gguf_pooling(file, arch.gguf_name),
    )
