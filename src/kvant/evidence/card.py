"""A model card: front matter as hubs read it, and the evidence as tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from kvant.checkpoint import ModelInfo
from kvant.evidence.record import Evidence, Quality
from kvant.files.source import printable
from kvant.units import NOTHING, size_text

__all__ = ["CARD_MARK", "model_card"]

CARD_MARK = "---\n# model card written by kvant\n"
"""How every card begins; a file that does not is somebody else's."""

_MARKUP = re.compile(r"[\\|`*<>\[\]]|(?<!\w)_|_(?!\w)")


def model_card(
    evidence: Evidence, info: ModelInfo, *, base_model: str | None, languages: Sequence[str] = ()
) -> str:
    """The card's text.

    Args:
        evidence: of the artefact.
        info: what its source says about itself.
        base_model: the hub's id of the source, where it is known.
        languages: as the source lists them; by default those of ``info``.
    """
    parts = [
        CARD_MARK + "".join(_front_matter(info, base_model, languages or info.languages)) + "---",
        f"# {_plain(evidence.files[0].name.removesuffix('.gguf'))}",
        _introduction(evidence, info),
        "## Files",
        _table(("file", "bytes"), [(f.name, f"{f.nbytes:,}") for f in evidence.files]),
        "## Size",
        _sizes(evidence),
    ]
    if evidence.quality:
        parts += ["## Quality", *map(_quality, evidence.quality)]
    if evidence.speed:
        parts += ["## Speed and memory", _speed(evidence)]
    parts += ["## How it was made", _made(evidence), "## Check it", _check(evidence)]
    return "\n\n".join(parts) + "\n"


def _front_matter(
    info: ModelInfo, base_model: str | None, languages: Sequence[str]
) -> Iterator[str]:
    """Lines of YAML; every text as a JSON string, which YAML takes too."""

    def line(key: str, value: str | Sequence[str] | None) -> str:
        if not value:
            return ""
        if isinstance(value, str):
            return f"{key}: {json.dumps(value)}\n"
        return f"{key}:\n" + "".join(f"- {json.dumps(item)}\n" for item in value)

    yield line("base_model", base_model)
    yield line("base_model_relation", "quantized" if base_model else None)
    yield line("license", info.license)
    yield line("license_name", info.license_name)
    yield line("license_link", info.license_link)
    yield line("language", list(languages))
    yield line("library_name", "gguf")
    yield line("quantized_by", "kvant")
    yield line("tags", ["gguf", "kvant"])


def _introduction(evidence: Evidence, info: ModelInfo) -> str:
    sizes = evidence.sizes
    recipe = f"{_plain(evidence.made.recipe)} " if evidence.made is not None else ""
    return (
        f"{_plain(info.name)} as {recipe}GGUF: {size_text(sizes.nbytes)}, "
        f"{sizes.bpw:.3f} bits per weight, {sizes.weights:,} weights."
    )


def _sizes(evidence: Evidence) -> str:
    rows = [
        (
            name,
            f"{c.weights:,}",
            f"{c.nbytes:,}",
            f"{c.bpw:.3f}",
            ", ".join(f"{count} x {packing}" for packing, count in c.packings.items()),
        )
        for name, c in evidence.sizes.classes.items()
    ]
    total = evidence.sizes
    rows.append(("all", f"{total.weights:,}", f"{total.tensor_bytes:,}", f"{total.bpw:.3f}", ""))
    return _table(("class", "weights", "bytes", "bits per weight", "tensors"), rows)


def _quality(quality: Quality) -> str:
    q, text = quality.rounded(), quality.text
    rows: list[tuple[str, float | None, float | None]] = [
        ("perplexity", q.perplexity, q.perplexity_se)
    ]
    if q.kld is not None:
        rows += [
            ("KL divergence, mean, nats a token", q.kld, q.kld_se),
            ("KL divergence, median", q.kld_median, None),
            ("KL divergence, 99th percentile", q.kld_p99, None),
            ("same top token, share", q.same_top, q.same_top_se),
            ("ln(perplexity / the base's)", q.ln_ppl_ratio, q.ln_ppl_ratio_se),
        ]
    against = f", against {_plain(quality.base.name)}" if quality.base is not None else ""
    figures = _table(
        ("figure", "value", "standard error"),
        [(name, _number(value), _number(se)) for name, value, se in rows],
    )
    return (
        f"On {_plain(text.name)} (SHA-256 {text.sha256[:16]}…), {text.chunks} chunks of "
        f"{text.context} tokens, {text.tokens:,} scored{against}:\n\n{figures}"
    )


def _speed(evidence: Evidence) -> str:
    rows = [
        (
            s.machine,
            str(s.threads),
            f"{s.test} {s.tokens}" + (f", batch {s.batch}" if s.batch > 1 else ""),
            str(s.depth),
            f"{s.rate:.1f}",
            f"{s.share:.0%}",
            size_text(s.peak_rss_bytes),
        )
        for s in evidence.speed
    ]
    header = ("machine", "threads", "test", "depth", "tokens/s", "of the limit", "peak memory")
    return _table(header, rows)


def _made(evidence: Evidence) -> str:
    made = evidence.made
    if made is None:
        return "By another tool; nothing is known about it."
    rows = [
        ("recipe", made.recipe),
        ("overrides", ", ".join(made.overrides)),
        ("target", made.target),
        ("effort", made.effort),
        ("method", made.method),
        ("importance, SHA-256", made.importance),
        ("calibration text, SHA-256", made.calibration),
        ("seed", None if made.seed is None else str(made.seed)),
        ("source", made.source_name),
        ("source's fingerprint", made.source),
        *made.versions.items(),
    ]
    return _table(("what", "value"), [(name, value) for name, value in rows if value])


def _check(evidence: Evidence) -> str:
    name = evidence.files[0].name.replace("`", "")
    return (
        "`NAME.evidence.json` beside the file has every figure. "
        "kvant computes them again:\n\n"
        f"```sh\nkvant verify '{printable(name)}' --evidence --against SOURCE\n```"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_plain(c) if c else "" for c in row) + " |" for row in lines)


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.10g}"


def _plain(text: str) -> str:
    """A text of somebody else's without markup."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(printable(text).split()))
