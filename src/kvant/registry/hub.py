"""Models of Hugging Face, through its own library: HF_HOME, HF_TOKEN and HF_HUB_OFFLINE count.

Files come into Hugging Face's cache, where other programs find them too, and are used there in
place. Nothing of huggingface_hub is imported unless a model of the hub is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvant.errors import MissingExtraError
from kvant.files.atomic import write_atomic
from kvant.files.source import quote
from kvant.registry.describe import is_license, is_wanted
from kvant.registry.errors import (
    AbsentError,
    DeniedError,
    HostileError,
    RegistryError,
    UnreachableError,
)
from kvant.registry.making import Base, from_files
from kvant.registry.name import Reference
from kvant.registry.progress import Progress, Step
from kvant.registry.store import Store

__all__ = ["choose", "from_hub"]

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_ASIDE = re.compile(r"mmproj|imatrix", re.IGNORECASE)
_PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_XS", "Q5_K_M", "Q8_0")
_KIND = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:I?Q[1-8]_[A-Z0-9_]+|Q[1-8]|TQ[12]_0|MXFP4|BF16|FP?16|FP?32))"
    r"(?![A-Za-z0-9_])",
    re.IGNORECASE,
)


def from_hub(store: Store, found: Reference, tell: Progress, *, offline: bool = False) -> Base:
    """Have a repository's model in the cache, and as layers of the store.

    Raises:
        AbsentError: there is no such repository, revision or file.
        DeniedError: it is gated or private.
        UnreachableError: no network, or none allowed.
        HostileError: a file is not what its published digest says.
    """
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants
    except ImportError:
        raise MissingExtraError(
            "Models of Hugging Face need the package huggingface_hub. Install it: "
            "pip install huggingface_hub."
        ) from None
    offline = offline or bool(constants.HF_HUB_OFFLINE)
    revision = found.revision or "main"
    with _Failures(found):
        if offline:
            names, commit = _cached(found.repository, revision), revision
        else:
            info = hub.HfApi().model_info(found.repository, revision=revision)
            names = [sibling.rfilename for sibling in info.siblings or []]
            commit = info.sha or revision
    chosen = choose(names, found.tag, str(found))
    extra = [n for n in names if n == "README.md" or is_license(n)]
    paths: list[Path] = []
    for name in dict.fromkeys((*chosen, *extra)):
        with _Failures(found):
            place = hub.hf_hub_download(
                found.repository,
                name,
                revision=commit,
                local_files_only=offline,
                tqdm_class=_reporter(tell, name),
            )
        paths.append(Path(place))
    if not offline and commit != revision:
        _note_revision(found.repository, revision, commit)
    first = paths[0]
    snapshot = first.parents[chosen[0].count("/")]  # any file may be the first, in any folder
    if not first.name.lower().endswith(".gguf"):
        return from_files(store, snapshot, tell, check=_check_published)
    base = from_files(store, first, tell, check=_check_published)
    return _with_license(store, base, snapshot if extra else None, tell)


def _check_published(path: Path, digest: str) -> None:
    """Compare a file with the digest the hub published, where it published one.

    The hub's library compares sizes only. It names a file in its cache by the ETag, and that of a
    large file (LFS, Xet), so of all weights, is its SHA-256; of small ones it is git's own hash.

    Raises:
        HostileError: it is another file.
    """
    real = path.resolve()
    if _SHA256.fullmatch(real.name) and digest != f"sha256:{real.name}":
        raise HostileError(
            f"{quote(path.name)} should have the SHA-256 {real.name}, as the hub says, and has "
            f"{digest[7:]}. Nothing of it was kept in the store. Delete {real} and pull again; if "
            "it stays so, the hub is damaged or not honest."
        )


def choose(names: Sequence[str], wanted: str, where: str) -> list[str]:
    """The files of a repository that are the model somebody asked for.

    Args:
        names: all files.
        wanted: a quantisation, a file's name, or nothing.
        where: begins messages.

    Raises:
        AbsentError: none fits; says what there is.
    """
    ggufs = sorted(n for n in names if n.lower().endswith(".gguf") and not _ASIDE.search(n))
    folder = [n for n in names if is_wanted(n)]
    weights = [n for n in folder if n.endswith(".safetensors")]
    if wanted:
        low = wanted.lower()
        exact = [n for n in ggufs if low in (n.lower(), n.lower().rpartition("/")[2])]
        kinds = [n for n in ggufs if low == _kind(n)] or [
            n for n in ggufs if low.removeprefix("ud-") == _kind(n).removeprefix("ud-")
        ]
        if low == "safetensors" and weights:
            return folder
        if exact or kinds:
            return _shards((exact or kinds)[0], ggufs)
    elif weights and not ggufs:
        return folder
    elif ggufs:
        for kind in _PREFERRED:
            if found := [n for n in ggufs if _kind(n) == kind.lower()]:
                return _shards(found[0], ggufs)
        if len(ggufs) == 1 or _SHARD.search(ggufs[0]):
            return _shards(ggufs[0], ggufs)
    has = sorted({_kind(n) or n for n in ggufs}) + (["safetensors"] if weights else [])
    listed = ", ".join(h.upper() if "." not in h and h != "safetensors" else h for h in has)
    if not has:
        raise AbsentError(f"{where}: the repository has neither GGUF files nor safetensors.")
    what = f"nothing of the kind {quote(wanted)}" if wanted else "several files, and none is usual"
    raise AbsentError(f"{where}: {what}. Write one after a colon: {listed}.")


def _kind(name: str) -> str:
    """The quantisation in a file's name, in small letters; empty where it has none."""
    found = _KIND.findall(name.rpartition("/")[2][:-5]) or _KIND.findall(name)
    return str(found[-1]).lower() if found else ""


def _shards(name: str, names: Sequence[str]) -> list[str]:
    """A file, or all shards of the one it begins."""
    match = _SHARD.search(name)
    if match is None:
        return [name]
    stem = name[: match.start()]
    return [n for n in names if n.startswith(stem) and _SHARD.search(n[len(stem) :])]


def _cache_of(repository: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"


def _note_revision(repository: str, revision: str, commit: str) -> None:
    """Say in the cache which commit a branch was, as the library does for whole snapshots.

    Without it, what was fetched by its commit is not found offline by the branch's name.
    """
    ref = _cache_of(repository) / "refs" / revision
    if not ref.is_file() or ref.read_text() != commit:
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(ref, commit, force=True)


def _cached(repository: str, revision: str) -> list[str]:
    """The files of a repository that are in the cache."""
    folder = _cache_of(repository)
    ref = folder / "refs" / revision
    commit = ref.read_text().strip() if ref.is_file() else revision
    snapshot = folder / "snapshots" / commit
    if not snapshot.is_dir():
        raise UnreachableError(
            f"hf://{repository} is not in Hugging Face's cache, and nothing may be fetched "
            "(HF_HUB_OFFLINE or --offline)."
        )
    return [p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()]


def _with_license(store: Store, base: Base, folder: Path | None, tell: Progress) -> Base:
    """What the repository says of its licence, where the file says nothing."""
    from kvant.checkpoint.card import read_card
    from kvant.registry.details import license_of
    from kvant.registry.fetch import link_file
    from kvant.registry.manifest import ROLE_TYPES, Descriptor

    if folder is None:
        return base
    card = read_card(folder)
    stated = card.get("license", "")
    if stated == "other":
        stated = card.get("license_name", stated)
    details = base.details
    if isinstance(stated, str) and stated and not details.license:
        details = replace(details, license=stated[:100])
    layers = list(base.layers)
    for path in sorted(folder.iterdir()):
        if is_license(path.name) and path.stat().st_size < 1 << 20:
            digest, size = link_file(store.layout, path, store.index, tell, check=_check_published)
            layers.append(Descriptor(ROLE_TYPES["license"], digest, size))
            if not details.license:
                text = path.read_text(errors="replace")
                details = replace(details, license=license_of(text))
    return Base(tuple(layers), details)


class _Failures:
    """The library's errors as ours, in one sentence each."""

    def __init__(self, found: Reference) -> None:
        self._found = found

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            return
        import huggingface_hub.errors as known

        where, text = str(self._found), str(error).partition("\n")[0][:200]
        if isinstance(error, known.GatedRepoError):
            raise DeniedError(
                f"{where} is given only to those who accept its licence. Accept it on the model's "
                "page, and set HF_TOKEN to your token."
            ) from None
        if isinstance(error, known.LocalEntryNotFoundError | known.OfflineModeIsEnabled):
            raise UnreachableError(
                f"{where} is not complete in Hugging Face's cache, and cannot be fetched: {text}"
            ) from None
        if isinstance(error, known.RevisionNotFoundError):
            raise AbsentError(
                f"{where}: there is no such revision. Check what follows the @."
            ) from None
        if isinstance(error, known.RepositoryNotFoundError):
            raise AbsentError(
                f"{where}: there is no such repository, or it is private. Check the name; for a "
                "private one set HF_TOKEN."
            ) from None
        if isinstance(error, known.EntryNotFoundError):
            raise AbsentError(f"{where}: a file of it is missing: {text}") from None
        if isinstance(error, known.HfHubHTTPError):
            raise RegistryError(f"{where}: {text}. Try again later.") from None
        if type(error).__module__.startswith(("httpx", "httpcore", "requests", "urllib3")):
            raise UnreachableError(f"{where}: no connection: {text}. Check the network.") from None
        if isinstance(error, OSError):
            raise RegistryError(f"{where}: {text}.") from None


def _reporter(tell: Progress, name: str) -> type[Any]:
    """What the library takes for a progress bar."""
    from tqdm import tqdm

    class Reporter(tqdm):  # type: ignore[misc]  # has no types
        """Bytes of one file, told instead of drawn."""

        def __init__(self, *arguments: Any, **settings: Any) -> None:
            settings.pop("name", None)
            settings["disable"] = True
            super().__init__(*arguments, **settings)
            self.n = settings.get("initial", 0) or 0
            self.total = settings.get("total")

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            tell(Step(f"pulling {name}", "", int(self.n), int(self.total or 0), name))

    return Reporter
