"""What a list says of a model, read from its files once, when it comes into the store."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kvant.checkpoint import count_storage, open_checkpoint
from kvant.checkpoint.info import ModelInfo, info_from_folder, info_from_gguf
from kvant.errors import FileFormatError, InputError
from kvant.files.config_json import read_json
from kvant.files.gguf import GgufFile, read_gguf_split
from kvant.files.safetensors import read_folder
from kvant.quant.presets import PRESETS
from kvant.registry.details import Details

__all__ = [
    "Details",
    "describe_folder",
    "describe_gguf",
    "folder_files",
    "gguf_details",
    "gguf_files",
    "is_license",
    "is_wanted",
]

_WANTED = re.compile(
    r"(?:config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|chat_template|preprocessor_config|modules|sentence_bert_config|quantize_config"
    r"|quantization_config)\.json"
    r"|1_Pooling/config\.json|merges\.txt|vocab\.txt|(?:tokenizer|spiece|sentencepiece\.bpe)\.model"
    r"|chat_template\.jinja|(?:model|pytorch_model)[\w.-]*\.safetensors(?:\.index\.json)?"
    r"|README\.md|(?i:LICENSE|LICENCE|NOTICE|USE_POLICY)(?:\.(?:md|txt))?",
    re.ASCII,
)
_LICENSE = re.compile(r"(?i:LICENSE|LICENCE)(?:\.(?:md|txt))?")


def gguf_files(file: GgufFile) -> Sequence[Path]:
    """The file, or all shards of a split one."""
    return [part.path for part in file.parts] or [file.path]


def describe_gguf(path: Path) -> Details:
    """What a GGUF file says about itself.

    Raises:
        InputError: it is damaged, or no GGUF file.
    """
    return gguf_details(read_gguf_split(path))


def gguf_details(file: GgufFile) -> Details:
    """The same of one that was read."""
    parameters = sum(t.elements for t in file.tensors.values())
    info = info_from_gguf(file, parameters)
    family = file.get_str("general.architecture", "")
    return Details(
        format="gguf",
        family=family,
        name=info.name,
        parameters=parameters,
        quantization=_quantization(file),
        license=_license_name(info),
        context=file.get_int(f"{family}.context_length", 0),
    )


def describe_folder(folder: Path) -> Details:
    """What a Hugging Face folder says about itself.

    Raises:
        InputError: it has no config.json or no safetensors, or they are damaged.
    """
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise FileFormatError(f"{folder / 'config.json'}: expected a JSON object.")
    tensors = read_folder(folder).tensors
    parameters = sum(t.elements for t in tensors.values())
    storage = count_storage(tensors.values())
    if "quantization" in config or "quantization_config" in config:
        with suppress(InputError):  # codes that kvant cannot read are counted as they lie there
            checkpoint = open_checkpoint(folder)
            parameters, storage = checkpoint.parameters, checkpoint.storage()
    info = info_from_folder(folder, config, parameters)
    length = config.get("max_position_embeddings")
    return Details(
        format="safetensors",
        family=str(config.get("model_type", ""))[:100],
        name=info.name,
        parameters=parameters,
        quantization=next(iter(storage), ""),
        license=_license_name(info),
        context=length if type(length) is int else 0,
    )


def folder_files(folder: Path) -> dict[str, Path]:
    """The files of a model in a folder, by the names they have in it.

    Raises:
        InputError: it is no model's folder.
    """
    found = {
        name: path
        for path in sorted((*folder.glob("*"), *folder.glob("1_Pooling/config.json")))
        if _WANTED.fullmatch(name := path.relative_to(folder).as_posix()) and path.is_file()
    }
    if "config.json" not in found or not any(n.endswith(".safetensors") for n in found):
        raise InputError(
            f"{folder}: expected a folder with config.json and safetensors. Name one, or a GGUF "
            "file."
        )
    return found


def is_wanted(name: str) -> bool:
    """Whether a file of a repository belongs to its model."""
    return _WANTED.fullmatch(name) is not None


def is_license(name: str) -> bool:
    """Whether a file is the licence's text."""
    return _LICENSE.fullmatch(name) is not None


def _license_name(info: ModelInfo) -> str:
    if info.license in (None, "other"):
        return info.license_name or info.license or ""
    return info.license or ""


def _quantization(file: GgufFile) -> str:
    number = file.get_int("general.file_type", None)
    for recipe in PRESETS:
        if recipe.file_type == number:
            return recipe.name
    return next(iter(count_storage(file.tensors.values())), "")
