"""A tokenizer from a Hugging Face folder.

Three kinds are read. Byte-level BPE needs tokenizer.json; what its pre-tokenizer computes decides
the name that llama.cpp knows it by. SentencePiece-style BPE needs tokenizer.model, or a
tokenizer.json with byte fallback. WordPiece, which ``hf_wordpiece.py`` reads, needs tokenizer.json
or vocab.txt. Which kind a file is follows from its own definition.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvant.errors import InputError, UnsupportedError, UsageError
from kvant.files.source import quote
from kvant.tokenizer import pretokenizers
from kvant.tokenizer.build import SPACE
from kvant.tokenizer.definition import (
    MAX_TOKENS,
    TokenizerDefinition,
    check_merges,
    split_merges,
)
from kvant.tokenizer.hf_ends import Ends, read_ends
from kvant.tokenizer.hf_files import Sources, load_sources, wrong
from kvant.tokenizer.hf_templates import read_templates
from kvant.tokenizer.hf_vocab import (
    Vocabulary,
    model_merges,
    model_vocab,
    of_bytes,
    of_merges,
    of_pieces,
)
from kvant.tokenizer.hf_wordpiece import is_wordpiece, read_wordpiece
from kvant.tokenizer.sentencepiece import read_sentencepiece
from kvant.tokenizer.specials import END_TEXTS

__all__ = ["from_folder"]


def from_folder(
    path: str | Path, vocab_size: int, *, pre: str | None = None
) -> TokenizerDefinition:
    """Read the tokenizer of a Hugging Face folder.

    Args:
        path: the folder.
        vocab_size: how many tokens the model has (``vocab_size`` of its config); ids without a
            token become ``[PAD{id}]``.
        pre: llama.cpp's name of the pre-tokenizer, for one that kvant does not recognise.

    Raises:
        InputError: there is no tokenizer, or it cannot be read.
        FileFormatError: the files are damaged or contradict each other.
        UnsupportedError: a kind of tokenizer that GGUF cannot carry, or a pre-tokenizer that
            llama.cpp is not known to have.
        UsageError: ``pre`` is no known name, or the tokenizer has no use for one.
    """
    folder = Path(path)
    if not 1 <= vocab_size <= MAX_TOKENS:
        raise UnsupportedError(
            f"{folder}: a vocab_size of {vocab_size} in config.json, expected 1 to {MAX_TOKENS}. "
            "Check that this is a language model."
        )
    if pre is not None and pre not in pretokenizers.known_names():
        raise UsageError(
            f"There is no pre-tokenizer called {quote(pre)}; kvant knows "
            f"{', '.join(pretokenizers.known_names())}."
        )
    sources = load_sources(folder)
    if sources.tokenizer and _is_byte_level(sources):
        return _byte_level(sources, vocab_size, pre)
    if pre is not None:
        raise UsageError(
            f"{folder}: the tokenizer is of SentencePiece's or WordPiece's kind, which has no "
            "pre-tokenizer of its own; leave --pre-tokenizer out."
        )
    if is_wordpiece(sources):
        return read_wordpiece(sources, vocab_size)
    if sources.model_path.is_file() or sources.tokenizer_path.is_file():
        return _sentencepiece(sources, vocab_size)
    raise InputError(
        f"{folder}: no tokenizer: neither tokenizer.json nor tokenizer.model is there. Fetch "
        "them, or have transformers write one: AutoTokenizer.from_pretrained(FOLDER)"
        ".save_pretrained(FOLDER)."
    )


def _is_byte_level(sources: Sources) -> bool:
    return _mentions(sources.tokenizer.get("pre_tokenizer"), "ByteLevel")


def _mentions(step: object, kind: str) -> bool:
    if not isinstance(step, Mapping):
        return False
    parts = step.get("pretokenizers")
    inner = parts if isinstance(parts, list) else []
    return step.get("type") == kind or any(_mentions(p, kind) for p in inner)


def _model(sources: Sources, byte_fallback: bool) -> Mapping[str, Any]:
    """The BPE model of tokenizer.json, without options that GGUF cannot say."""
    where = sources.tokenizer_path
    model = sources.tokenizer.get("model")
    if not isinstance(model, dict):
        raise wrong(where, "model", "an object", model)
    expected: dict[str, tuple[object, ...]] = {
        "type": ("BPE", None),
        "dropout": (None, 0, 0.0),
        "continuing_subword_prefix": (None, ""),
        "end_of_word_suffix": (None, ""),
        "byte_fallback": (True,) if byte_fallback else (False, None),
        "ignore_merges": (False, None) if byte_fallback else (False, True, None),
    }
    for key, values in expected.items():
        got = model.get(key)
        if not any(type(got) is type(v) and got == v for v in values):
            raise UnsupportedError(
                f"{where}: the tokenizer's model has {key} {quote(str(got), 60)}, expected "
                f"{values[0]}; GGUF cannot carry it. Use a model with a BPE tokenizer."
            )
    return model


def _byte_level(sources: Sources, vocab_size: int, pre: str | None) -> TokenizerDefinition:
    where = str(sources.tokenizer_path)
    model = _model(sources, byte_fallback=False)
    merges = model_merges(sources)
    vocab = model_vocab(sources, vocab_size)
    pairs = split_merges(merges, where)
    check_merges(pairs, vocab, where)
    found = of_bytes(sources, vocab, vocab_size)
    found.notes += _normalizer_notes(sources)
    ends = read_ends(sources, _ids(found), vocab_size)
    if pre is not None:
        entry = pretokenizers.find(pre, where)
        found.notes.append(f"The pre-tokenizer {pre} is taken as given, not recognised.")
    else:
        entry, differs = pretokenizers.recognise(
            sources.tokenizer.get("pre_tokenizer"),
            model.get("ignore_merges") is True,
            lambda: _merging_reaches_all(vocab, pairs),
            where,
        )
        if differs:
            found.notes.append(f"Some ids may differ from transformers': {differs}.")
    if ends.decided and entry.add_bos:
        # llama.cpp would put the token there unless told not to; this tokenizer does not.
        ends.add.setdefault("bos", False)
    return _definition(
        sources,
        found,
        ends,
        model="gpt2",
        pre=pre or entry.name,
        merges=merges,
        # Without meaning here, but the converter writes it for some architectures.
        add_space_prefix=False
        if sources.tokenizer_config.get("add_prefix_space") is False
        else None,
    )


def _normalizer_notes(sources: Sources) -> list[str]:
    normalizer = sources.tokenizer.get("normalizer")
    steps = [normalizer]
    if isinstance(normalizer, Mapping) and normalizer.get("type") == "Sequence":
        parts = normalizer.get("normalizers")
        steps = list(parts) if isinstance(parts, list) else [normalizer]
    kinds = [s.get("type") if isinstance(s, Mapping) else s for s in steps]
    if all(k is None for k in kinds):
        return []
    if kinds == ["NFC"]:
        return [
            "The tokenizer composes characters first (NFC); llama.cpp does not, so text in "
            "decomposed form gets other ids there."
        ]
    raise UnsupportedError(
        f"{sources.tokenizer_path}: the tokenizer changes text first, by "
        f"{quote(str(normalizer), 200)}, and llama.cpp does not for byte-level BPE. Use a model "
        "without such a normalizer."
    )


def _merging_reaches_all(vocab: Mapping[str, int], merges: list[tuple[str, str]]) -> bool:
    """Whether every token is what merging makes of its own text."""
    from tokenizers.models import BPE

    bpe = BPE(dict(vocab), merges)
    return all(len(bpe.tokenize(t)) == 1 for t in vocab)


def _sentencepiece(sources: Sources, vocab_size: int) -> TokenizerDefinition:
    pipeline_notes: list[str] = []
    prefix: bool | None = None
    has_model = sources.model_path.is_file()
    if not has_model:
        _model(sources, byte_fallback=True)
    if sources.tokenizer:
        try:
            prefix, pipeline_notes = _read_pipeline(sources)
        except UnsupportedError as error:
            if not has_model:
                raise
            pipeline_notes = [f"tokenizer.model is used alone, because: {error}"]
    if has_model:
        model = read_sentencepiece(sources.model_path)
        found = of_pieces(sources, model, vocab_size)
        if prefix is None:
            prefix = model.add_dummy_prefix
            if model.has_character_map:
                pipeline_notes.append(
                    "tokenizer.model normalises characters first; llama.cpp does not, so some "
                    "text gets other ids there."
                )
            if model.remove_extra_whitespaces:
                pipeline_notes.append(
                    "tokenizer.model removes repeated spaces first; llama.cpp does not."
                )
    else:
        merges = model_merges(sources)
        found = of_merges(sources, model_vocab(sources, vocab_size), merges, vocab_size)
    found.notes += pipeline_notes
    ends = read_ends(sources, _ids(found), vocab_size)
    said = sources.tokenizer_config.get("add_prefix_space") is not None
    return _definition(
        sources,
        found,
        ends,
        model="llama",
        pre="default",
        scores=found.scores,
        # llama.cpp's default is a prefix, and the converter writes what the config mentions.
        add_space_prefix=prefix if said or prefix is False else None,
    )


def _read_pipeline(sources: Sources) -> tuple[bool, list[str]]:
    """How a SentencePiece-style tokenizer.json writes spaces: with a prefix or not, and remarks."""
    where = sources.tokenizer_path
    prefix, replaced = False, False
    notes: list[str] = []
    for step in _flat(sources.tokenizer.get("normalizer"), "normalizers"):
        kind = step.get("type")
        if kind == "Prepend" and step.get("prepend") == SPACE:
            prefix = True
        elif kind == "Replace" and _is_space_to_mark(step):
            replaced = True
        else:
            raise _no_such_step(where, step)
    for step in _flat(sources.tokenizer.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Split" and step.get("pattern") == {"String": " "} and replaced:
            continue  # no spaces are left by then
        if step.get("type") != "Metaspace" or step.get("replacement") != SPACE:
            raise _no_such_step(where, step)
        if step.get("split", True) is not False and _has_inner_marks(sources):
            raise _no_such_step(where, step)
        replaced = True
        scheme = step.get("prepend_scheme")
        if scheme is None:
            scheme = "always" if step.get("add_prefix_space", True) is True else "never"
        if scheme in ("always", "first"):
            prefix = True
            notes.append(
                "The tokenizer puts no second space before a text that begins with one"
                + (", and none after special tokens" if scheme == "first" else "")
                + "; llama.cpp does, so such text gets other ids there."
            )
    if not replaced:
        raise _no_such_step(where, {"normalizer": sources.tokenizer.get("normalizer")})
    return prefix, notes


def _flat(step: object, parts: str) -> list[Mapping[str, Any]]:
    if not isinstance(step, Mapping):
        return []
    inner = step.get(parts)
    if step.get("type") == "Sequence" and isinstance(inner, list):
        return [s for part in inner for s in _flat(part, parts)]
    return [step]


def _is_space_to_mark(step: Mapping[str, Any]) -> bool:
    return step.get("pattern") == {"String": " "} and step.get("content") == SPACE


def _has_inner_marks(sources: Sources) -> bool:
    """Whether some merge crosses the border of a word, which splitting would prevent."""
    return any(SPACE in m.replace(" ", "")[1:] for m in model_merges(sources))


def _no_such_step(where: Path, step: object) -> UnsupportedError:
    return UnsupportedError(
        f"{where}: the tokenizer has a step that llama.cpp has nothing like for this kind of "
        f"tokenizer: {quote(str(step), 200)}. Use a model whose tokenizer only marks spaces."
    )


def _ids(found: Vocabulary) -> dict[str, int]:
    return {t: i for i, t in enumerate(found.tokens)}


def _definition(
    sources: Sources, found: Vocabulary, ends: Ends, **parts: Any
) -> TokenizerDefinition:
    template, named, notes = read_templates(sources)
    others = [i for i in ends.end_ids if found.tokens[i] not in END_TEXTS]
    if "eot" not in ends.ids and (extra := [i for i in others if i != ends.ids.get("eos")]):
        # An end that llama.cpp would not know by its text: there is one key to say so.
        ends.ids["eot"] = extra[0]
    return TokenizerDefinition(
        tokens=found.tokens,
        token_types=found.types,
        special_ids=ends.ids,
        add_bos=ends.add.get("bos"),
        add_eos=ends.add.get("eos"),
        add_sep=ends.add.get("sep"),
        chat_template=template,
        chat_templates=named,
        end_ids=ends.end_ids,
        notes=(*found.notes, *ends.notes, *notes),
        where=str(sources.folder),
        **parts,
    )
