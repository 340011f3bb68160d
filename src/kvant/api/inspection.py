"""What a model is and what can be made of it, before any work."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from kvant.api.source import Source, open_source, resolve
from kvant.arch import ModelConfig
from kvant.checkpoint import Checkpoint, ModelInfo, StorageCount, count_storage
from kvant.checkpoint.info import info_from_folder, info_from_gguf
from kvant.errors import UnsupportedError
from kvant.export.gguf.plan import model_metadata, plan_export
from kvant.files.config_json import read_json
from kvant.files.gguf import read_gguf_split
from kvant.files.safetensors import read_folder
from kvant.packing import PrecisionClass
from kvant.quant.presets import PRESETS
from kvant.tokenizer.definition import TokenizerDefinition

__all__ = ["Inspection", "RecipeSize", "TokenizerSummary", "inspect"]


@dataclass(frozen=True, slots=True)
class RecipeSize:
    """The exact file a recipe gives."""

    recipe: str
    precision_class: PrecisionClass
    nbytes: int
    bits_per_weight: float
    fell_back: int
    """Tensors that got another packing because their rows do not fill blocks."""


@dataclass(frozen=True, slots=True)
class TokenizerSummary:
    """What the model reads and writes text with."""

    model: str
    pre_tokenizer: str | None
    tokens: int
    special: dict[str, str]
    chat_template: bool


@dataclass(frozen=True, slots=True)
class Inspection:
    """A model as found. ``obstacle`` says why it does not convert; None if it does."""

    path: Path
    format: str
    architecture: str
    parameters: int
    config: dict[str, object]
    """The fields kvant read; empty where it does not know the architecture."""
    storage: dict[str, StorageCount]
    info: ModelInfo
    tokenizer: TokenizerSummary | None
    recipes: tuple[RecipeSize, ...]
    ignored: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...]
    obstacle: str | None

    @property
    def converts(self) -> bool:
        """Whether kvant can write this model."""
        return self.obstacle is None

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return {
            "path": str(self.path),
            "format": self.format,
            "architecture": self.architecture,
            "parameters": self.parameters,
            "config": self.config,
            "storage": {
                name: {"tensors": c.tensors, "elements": c.elements, "bytes": c.nbytes}
                for name, c in self.storage.items()
            },
            "info": asdict(self.info),
            "tokenizer": None if self.tokenizer is None else asdict(self.tokenizer),
            "converts": self.converts,
            "obstacle": self.obstacle,
            "recipes": [
                {
                    "name": r.recipe,
                    "precision_class": r.precision_class,
                    "bytes": r.nbytes,
                    "bpw": r.bits_per_weight,
                    "fell_back": r.fell_back,
                }
                for r in self.recipes
            ],
            "ignored": list(self.ignored),
            "unused": list(self.unused),
            "notes": list(self.notes),
        }


def inspect(source: Source, *, pre_tokenizer: str | None = None) -> Inspection:
    """Describe a model and the exact size of every recipe; reads headers and tokenizer only.

    What kvant does not support (an architecture, a storage type, a tokenizer) is not an error here
    but the ``obstacle``, beside whatever can be said about the model.

    Raises:
        InputError: there is no model at ``source``, or its files are damaged.
    """
    try:
        checkpoint = open_source(source)
    except UnsupportedError as error:
        return _unsupported(resolve(source), str(error))
    obstacle: str | None = None
    tokenizer: TokenizerDefinition | None = None
    recipes: tuple[RecipeSize, ...] = ()
    try:
        tokenizer = checkpoint.tokenizer(pre=pre_tokenizer)
        recipes = _sizes(checkpoint, pre_tokenizer)
    except UnsupportedError as error:
        obstacle = str(error)
    return Inspection(
        path=checkpoint.path,
        format=checkpoint.format,
        architecture=checkpoint.architecture.name,
        parameters=checkpoint.parameters,
        config=_config(checkpoint.config),
        storage=checkpoint.storage(),
        info=checkpoint.info,
        tokenizer=None if tokenizer is None else _summary(tokenizer),
        recipes=recipes,
        ignored=checkpoint.ignored,
        unused=checkpoint.unused,
        notes=checkpoint.notes + (tokenizer.notes if tokenizer else ()),
        obstacle=obstacle,
    )


def _unsupported(path: Path, obstacle: str) -> Inspection:
    """What the containers alone say about a model that kvant does not understand.

    Raises:
        UnsupportedError: they say nothing either (a pickle, another kind of file).
    """
    if path.is_dir():
        config = read_json(path / "config.json") if (path / "config.json").exists() else {}
        values = config if isinstance(config, dict) else {}
        tensors = list(read_folder(path).tensors.values())
        parameters = sum(t.elements for t in tensors)
        kind, name = "hf", str(values.get("model_type", "unknown"))
        info = info_from_folder(path, values, parameters)
    else:
        file = read_gguf_split(path)
        tensors = list(file.tensors.values())
        parameters = sum(t.elements for t in tensors)
        kind, name = "gguf", file.get_str("general.architecture", "unknown")
        info = info_from_gguf(file, parameters)
    return Inspection(
        path=path,
        format=kind,
        architecture=name,
        parameters=parameters,
        config={},
        storage=count_storage(tensors),
        info=info,
        tokenizer=None,
        recipes=(),
        ignored=(),
        unused=(),
        notes=(),
        obstacle=obstacle,
    )


def _sizes(checkpoint: Checkpoint, pre_tokenizer: str | None) -> tuple[RecipeSize, ...]:
    model = model_metadata(checkpoint, pre_tokenizer=pre_tokenizer)
    sizes = []
    for recipe in PRESETS:
        plan = plan_export(checkpoint, recipe, model=model)
        fell_back = sum(t.assignment.fell_back for t in plan.tensors)
        sizes.append(
            RecipeSize(
                recipe.name, recipe.precision_class, plan.size, plan.bits_per_weight, fell_back
            )
        )
    return tuple(sizes)


def _config(config: ModelConfig) -> dict[str, object]:
    values: dict[str, object] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        values[field.name] = asdict(value) if hasattr(value, "__dataclass_fields__") else value
    return values


def _summary(tokenizer: TokenizerDefinition) -> TokenizerSummary:
    return TokenizerSummary(
        model={"gpt2": "byte-level BPE", "llama": "SentencePiece BPE"}.get(
            tokenizer.model, tokenizer.model
        ),
        pre_tokenizer=tokenizer.pre,
        tokens=len(tokenizer.tokens),
        special={name: tokenizer.tokens[i] for name, i in tokenizer.special_ids.items()},
        chat_template=tokenizer.chat_template is not None,
    )
