"""What lies beside the weights in a model's folder: config.json, tokenizer, sampling settings.

A Hugging Face source's own files are taken over; a GGUF file's metadata becomes such files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from kvant.checkpoint import Checkpoint
from kvant.errors import FileFormatError, UnsupportedError
from kvant.files.config_json import read_json
from kvant.files.source import open_source, read_exactly
from kvant.tokenizer.hf_write import to_hf_config, to_hf_json

__all__ = ["companions", "config_values", "json_bytes"]

_COPIED = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt"),
    *("chat_template.jinja", "chat_template.json", "generation_config.json"),
    *("modules.json", "sentence_bert_config.json", "1_Pooling/config.json"),
)
_MOST_BYTES = 64_000_000
_QUANTISED = ("quantization", "quantization_config", "compression_config")
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def json_bytes(values: object) -> bytes:
    """JSON as the field's tools write it."""
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def config_values(
    checkpoint: Checkpoint, dtype: str, *, complete: bool = False
) -> dict[str, object]:
    """The content of config.json for unquantised weights of ``dtype``.

    Args:
        checkpoint: the source; a folder's own config is kept but for what says how its weights
            were quantised.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        complete: say what transformers has defaults for, and the rope by ``rope_theta`` and
            ``rope_scaling`` where the source has transformers 5's ``rope_parameters``: for
            runtimes that know neither.

    Raises:
        UnsupportedError: a GGUF file's config has values that a config.json has no place for.
    """
    arch, config = checkpoint.architecture, checkpoint.config
    if checkpoint.gguf is None:
        found = read_json(checkpoint.path / "config.json")
        assert isinstance(found, dict)
        values = {k: v for k, v in found.items() if k not in _QUANTISED}
    else:
        values = {**arch.to_hf(config), **_token_ids(checkpoint)}
    if complete and checkpoint.gguf is None:
        said = arch.to_hf(config)
        if values.pop("rope_parameters", None):
            ropes = ("rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor")
            values.update({k: said[k] for k in ropes if k in said})
        values = {**said, **values}
    values.pop("dtype", None)
    return {**values, "torch_dtype": dtype}


def _token_ids(checkpoint: Checkpoint) -> dict[str, object]:
    definition = checkpoint.tokenizer()
    names = ("bos", "eos", "pad")
    if definition is None:  # transformers' defaults are those of one model
        return {f"{name}_token_id": None for name in names}
    return {f"{name}_token_id": definition.token_id(name) for name in names}


def companions(checkpoint: Checkpoint) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Files of the folder by name, config.json excepted, and notes on what could not be said."""
    if checkpoint.gguf is None:
        return _copied(checkpoint.path), ()
    files: dict[str, bytes] = {}
    notes: list[str] = []
    definition = checkpoint.tokenizer()
    if definition is not None:
        try:
            config = to_hf_config(definition)
            files["tokenizer.json"] = json_bytes(to_hf_json(definition))
            template = config.get("chat_template")
            if isinstance(template, str):
                files["chat_template.jinja"] = template.encode()
                del config["chat_template"]
            files["tokenizer_config.json"] = json_bytes(config)
        except (UnsupportedError, FileFormatError) as error:
            files, notes = {}, [f"The tokenizer was left out: {error}"]
    else:
        notes.append("The source has no tokenizer; the folder has none either and cannot chat.")
    generation = _generation(checkpoint)
    if generation:
        files["generation_config.json"] = json_bytes(generation)
    return files, tuple(notes)


def _copied(folder: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name in _COPIED:
        path = folder / name
        if not path.is_file():
            continue
        with open_source(path) as (fd, size):
            if size > _MOST_BYTES:
                raise FileFormatError(
                    f"{path}: has {size / 1e6:.0f} MB, expected at most {_MOST_BYTES / 1e6:.0f}. "
                    "Fetch the file again."
                )
            found[name] = read_exactly(fd, path, 0, size)
    return found


def _generation(checkpoint: Checkpoint) -> Mapping[str, object]:
    file = checkpoint.gguf
    assert file is not None
    values: dict[str, object] = {}
    for key, name in _SAMPLING.items():
        stated = file.metadata.get(f"general.sampling.{key}")
        if stated is not None:
            value = stated.value
            values[name] = round(value, 6) if isinstance(value, float) else value
    if values:
        values["do_sample"] = True
    ids = {key: value for key, value in _token_ids(checkpoint).items() if value is not None}
    return {**ids, **values}
