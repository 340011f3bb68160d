"""Opening a Hugging Face folder: config.json and safetensors, single or sharded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kvant.arch import find_hf
from kvant.checkpoint.checkpoint import Checkpoint, check_layers, check_unused, match_weights
from kvant.checkpoint.info import info_from_folder
from kvant.checkpoint.locate import locate
from kvant.checkpoint.names import HF_NAMES, is_aside, is_buffer, is_computed
from kvant.checkpoint.pooling import folder_pooling
from kvant.checkpoint.quantised import dequantised
from kvant.checkpoint.weights import Weight
from kvant.errors import FileFormatError, InputError, UnsupportedError
from kvant.files.config_json import read_json
from kvant.files.safetensors import read_folder
from kvant.files.tensor import StoredTensor

__all__ = ["open_folder"]

_HEAD = f"{HF_NAMES['output']}.weight"
#: Elements compared at a time.
_CHUNK = 4_000_000


def open_folder(folder: Path) -> Checkpoint:
    """Read config and headers, check them against each other; no weights are read.

    Only where a model with tied embeddings stores the output matrix too are the two compared.

    Raises:
        InputError (one of its kinds): what is missing, damaged or not supported.
    """
    config_path = folder / "config.json"
    values = _read_config(folder, config_path)
    where = str(config_path)
    arch = find_hf(values, where)
    content = read_folder(folder)
    floats = dequantised(values, content, where)
    config, ignored = arch.from_hf(floats.values, where)
    check_layers(config.num_hidden_layers, len(floats.tensors), where)
    graph = arch.trace(config)
    tensors, other = floats.tensors, {name: t.dtype for name, t in floats.other.items()}
    found = locate(graph, tensors, other, arch.name, str(folder))
    stored = {**tensors, **found.made}
    weights = match_weights(graph, stored, other, found.names, "half", str(folder))

    extra = [name for name in (*tensors, *other) if name not in found.used]
    buffers = {name for name in extra if is_buffer(name)}
    bare = [n for n in extra if found.bare and not is_aside(n, arch.name)]
    left = bare or [n for n in extra if is_computed(n, arch.name)]
    notes = list(floats.notes)
    if config.tie_word_embeddings and _HEAD in tensors:
        embedding = tensors[found.names["token_embd.weight"]]
        _check_tied(embedding, tensors[_HEAD])
        left = [name for name in left if name != _HEAD]
        notes.append(
            f"{_HEAD} repeats {embedding.name}, to which the config ties it; it is not used."
        )
    check_unused([name for name in left if name not in buffers], str(folder))
    if buffers:
        notes.append(f"{len(buffers)} stored rope frequencies or masks follow from the config.")
    return Checkpoint(
        path=folder,
        format="hf",
        architecture=arch,
        config=config,
        graph=graph,
        weights=weights,
        info=info_from_folder(folder, values, sum(w.stored.elements for w in weights.values())),
        files=content.files,
        ignored=tuple(ignored),
        unused=tuple(sorted({*extra, *content.unlisted})),
        notes=tuple(notes),
        pooling=folder_pooling(folder),
    )


def _read_config(folder: Path, path: Path) -> dict[str, object]:
    if not path.exists():
        raise InputError(f"{folder}: expected a model, got no config.json. {_instead(folder)}")
    values = read_json(path)
    if not isinstance(values, dict):
        raise FileFormatError(
            f"{path}: expected a JSON object, got {type(values).__name__}. Fetch the file again."
        )
    return values


def _instead(folder: Path) -> str:
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        names = []
    ggufs = [name for name in names if name.endswith(".gguf")]
    if ggufs:
        return f"The folder has GGUF files; name one, such as {ggufs[0]!r}."
    if "adapter_config.json" in names:
        return "This is an adapter; merge it into its base model and save that."
    if "params.json" in names:
        return "This is Meta's own format; get the Hugging Face version of the model."
    return "Name the folder that holds config.json and the safetensors files, or a GGUF file."


def _check_tied(embedding: StoredTensor, head: StoredTensor) -> None:
    """Make sure that ties are true: transformers 4 ignores a differing head, 5 uses it."""
    same = embedding.shape == head.shape
    left, right = Weight(embedding.name, embedding), Weight(_HEAD, head)
    step = max(1, _CHUNK // max(1, embedding.row_length))
    with left.open() as a, right.open() as b:
        for start in range(0, embedding.rows if same else 0, step):
            stop = min(start + step, embedding.rows)
            same = same and np.array_equal(
                left.read_rows_f32(a, start, stop), right.read_rows_f32(b, start, stop)
            )
            if not same:
                break
    if not same:
        raise UnsupportedError(
            f"{head.path}: {_HEAD!r} should equal {embedding.name!r}, to which "
            "'tie_word_embeddings' ties it, got other values. Set that to false in config.json if "
            "the output matrix is meant, or remove the tensor."
        )
