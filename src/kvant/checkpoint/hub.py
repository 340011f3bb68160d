"""The id under which a model is published, as far as its files say it."""

from __future__ import annotations

import re

from kvant.checkpoint.checkpoint import Checkpoint
from kvant.errors import KvantError
from kvant.files.config_json import read_json

__all__ = ["hub_id"]

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_URL = re.compile(r"https?://huggingface\.co/([^/\s]+/[^/\s]+)/?")
_CACHED = re.compile(r"models--(.+?)--(.+)")
_MOST = 200


def hub_id(checkpoint: Checkpoint) -> str | None:
    """``organization/name``: from the hub's cache folder, the config, or stated addresses."""
    info = checkpoint.info
    for url in (info.source_repo_url, info.source_url):
        if url and (match := _URL.fullmatch(url)) and _ID.fullmatch(match[1]):
            return match[1][:_MOST]
    if checkpoint.gguf is not None:
        return None
    place = checkpoint.path.absolute()
    cached = _CACHED.fullmatch(place.parent.parent.name)
    if cached and place.parent.name == "snapshots":
        return f"{cached[1]}/{cached[2]}"
    try:
        config = read_json(checkpoint.path / "config.json")
    except KvantError:  # it was read when the checkpoint was opened; a card does not need it
        return None
    stated = config.get("_name_or_path") if isinstance(config, dict) else None
    return stated[:_MOST] if isinstance(stated, str) and _ID.fullmatch(stated) else None
