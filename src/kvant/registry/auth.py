"""Credentials for registries: from kvant's environment, or from what ``docker login`` left.

``KVANT_REGISTRY_AUTH`` holds ``HOST=USER:PASSWORD`` or ``HOST=TOKEN``, several separated by white
space; so nothing goes to a host it was not meant for. Otherwise docker's config.json
(``DOCKER_CONFIG``, ``~/.docker``) is read, its credential helpers included.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvant.errors import KvantError
from kvant.files.config_json import read_json
from kvant.files.source import with_home
from kvant.registry.errors import DeniedError

__all__ = ["Credentials", "find_credentials", "parse_challenge"]

_HELPER = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_DOCKER_HUB_LOGIN = "https://index.docker.io/v1/"
_DOCKER_HUB = ("docker.io", "index.docker.io", "registry-1.docker.io")


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """A user and password, or a token that is sent as it is (``bearer``), or one that is exchanged
    for those (``identity``). Never shown."""

    user: str = ""
    password: str = ""
    bearer: str = ""
    identity: str = ""

    @property
    def basic(self) -> str | None:
        """The header with user and password."""
        if not self.user:
            return None
        pair = f"{self.user}:{self.password}".encode()
        return "Basic " + base64.b64encode(pair).decode()


def find_credentials(host: str) -> Credentials | None:
    """What is to be shown to a registry; None where nobody said."""
    host = host.lower()
    for entry in os.environ.get("KVANT_REGISTRY_AUTH", "").split():
        name, equals, secret = entry.partition("=")
        if equals and name.lower() == host:
            user, colon, password = secret.partition(":")
            return Credentials(user, password) if colon else Credentials(bearer=secret)
    folder = with_home(os.environ.get("DOCKER_CONFIG") or "~/.docker")
    path = folder / "config.json"
    if not path.exists():
        return None
    try:
        config = read_json(path)
    except KvantError as error:
        raise DeniedError(f"{error} Credentials of registries were looked for there.") from None
    return _from_docker(config, host) if isinstance(config, dict) else None


def _from_docker(config: Mapping[str, Any], host: str) -> Credentials | None:
    hosts = _DOCKER_HUB if host in _DOCKER_HUB else (host,)
    spellings = [
        f"{scheme}{h}{end}"
        for h in hosts
        for scheme in ("", "https://", "http://")
        for end in ("", "/", "/v1/", "/v2/")
    ]
    helpers = config.get("credHelpers")
    if isinstance(helpers, dict):
        written = next((s for s in spellings if s in helpers), None)
        if written is not None and isinstance(helpers[written], str):
            return _from_helper(helpers[written], written)
    # `docker login` writes this, and a helper finds only what it was given by the same text.
    written = _DOCKER_HUB_LOGIN if host in _DOCKER_HUB else host
    stored = config.get("auths")
    if isinstance(stored, dict):
        written = next((s for s in spellings if s in stored), None)
        if written is None:
            return None
        entry = stored[written]
        if isinstance(entry, dict) and (found := _from_entry(entry)) is not None:
            return found
    helper = config.get("credsStore")
    return _from_helper(helper, written) if isinstance(helper, str) else None


def _from_entry(entry: Mapping[str, Any]) -> Credentials | None:
    def text(key: str) -> str:
        value = entry.get(key)
        return value if isinstance(value, str) else ""

    user, password = text("username"), text("password")
    if not user and text("auth"):
        try:
            pair = base64.b64decode(text("auth"), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return None
        user, _, password = pair.partition(":")
        password = password.rstrip("\0")
    found = Credentials(user, password, text("registrytoken"), text("identitytoken"))
    return found if found != Credentials() else None


def _from_helper(helper: str, server: str) -> Credentials | None:
    """Ask docker's helper program for what was stored for ``server``, as docker does."""
    if not _HELPER.fullmatch(helper):
        return None
    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", "get"],
            input=server,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        said = json.loads(done.stdout) if done.returncode == 0 else {}
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    if not isinstance(said, dict) or not isinstance(said.get("Secret"), str):
        return None
    user = str(said.get("Username", ""))
    if user == "<token>":
        return Credentials(identity=said["Secret"])
    return Credentials(user, said["Secret"]) if user else None


def parse_challenge(header: str) -> tuple[str, dict[str, str]]:
    """``WWW-Authenticate`` taken apart: the scheme in small letters, and its parameters."""
    scheme, _, rest = header.strip().partition(" ")
    found = re.findall(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))', rest[:4000])
    return scheme.lower(), {name.lower(): quoted or bare for name, quoted, bare in found}
