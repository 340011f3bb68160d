"""Chat templates in a Hugging Face folder, carried as they are.

Sources: ``PreTrainedTokenizerBase._from_pretrained`` of transformers for which file wins,
``GGUFWriter.add_chat_template`` of gguf-py for the names.
"""

from __future__ import annotations

from pathlib import Path

from kvant.errors import FileFormatError
from kvant.tokenizer.chat import MAX_TEMPLATE_CHARS
from kvant.tokenizer.hf_files import Sources, read_object, wrong
from kvant.tokenizer.reading import read_text

__all__ = ["read_templates"]

MAX_TEMPLATES = 64


def read_templates(sources: Sources) -> tuple[str | None, dict[str, str], list[str]]:
    """The chat template, further ones by name, and remarks for the report.

    A file chat_template.jinja wins over tokenizer_config.json, as in transformers.

    Raises:
        FileFormatError: a template is not a text, or too large.
    """
    folder = sources.folder
    config = folder / "tokenizer_config.json"
    default, named = _parse(config, sources.tokenizer_config.get("chat_template"))
    beside = folder / "chat_template.jinja"
    older = folder / "chat_template.json"
    if beside.is_file():
        text = read_text(beside, 4 * MAX_TEMPLATE_CHARS)
        files = sorted((folder / "additional_chat_templates").glob("*.jinja"))[:MAX_TEMPLATES]
        further = {_name(f.stem): read_text(f, 4 * MAX_TEMPLATE_CHARS) for f in files}
        notes = []
        if default is not None and default != text:
            notes.append(
                "chat_template.jinja and tokenizer_config.json have different chat templates; "
                "the file's is taken, as transformers does."
            )
        return text, further, notes
    if default is None and not named and older.is_file():
        default, named = _parse(older, read_object(older).get("chat_template"))
    return default, named, []


def _parse(where: Path, value: object) -> tuple[str | None, dict[str, str]]:
    """A template, or a list of named ones of which one may be called "default"."""
    if value is None or isinstance(value, str):
        return _checked(where, value), {}
    if not isinstance(value, list) or len(value) > MAX_TEMPLATES:
        raise wrong(where, "chat_template", f"a text or a list of up to {MAX_TEMPLATES}", value)
    found: dict[str, str] = {}
    for entry in value:
        name = entry.get("name") if isinstance(entry, dict) else None
        template = entry.get("template") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name or not isinstance(template, str):
            raise wrong(where, "chat_template", "a list of names with templates", entry)
        found[_name(name)] = _checked(where, template) or ""
    return found.pop("default", None), found


def _checked(where: Path, template: str | None) -> str | None:
    if template is not None and len(template) > MAX_TEMPLATE_CHARS:
        raise FileFormatError(
            f"{where}: a chat template of {len(template)} characters, expected at most "
            f"{MAX_TEMPLATE_CHARS}. Fetch the file again."
        )
    return template


def _name(name: str) -> str:
    """``name`` as it may stand in a key of GGUF metadata."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
