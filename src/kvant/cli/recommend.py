"""``kvant recommend``: level, format and engine for a device, and what to expect."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvant.cli import show
from kvant.cli.options import Commands, byte_size, positive

if TYPE_CHECKING:
    from kvant.api.advice import Recommendation
    from kvant.devices import Prediction, SpeedRange
    from kvant.devices.knowledge import Cited

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "recommend",
        help="which variant of a model fits a device, and what to expect of it",
        description="Choose level, format and engine for a device, from exact sizes, predicted "
        "memory and speed, and measurements. Exit status 1 where nothing fits.",
    )
    parser.add_argument("source", metavar="SRC", help="demo, a Hugging Face folder, a GGUF file")
    parser.add_argument(
        "--device", metavar="NAME", help="a name `kvant devices` lists, or here: this machine"
    )
    parser.add_argument(
        "--ram", type=byte_size, metavar="SIZE", help="memory a model may take, such as 4GB"
    )
    parser.add_argument(
        "--context", type=positive, metavar="N", help="tokens to keep (default: 4096)"
    )
    parser.add_argument(
        "--use",
        choices=("chat", "code", "productivity", "research"),
        default="chat",
        help="what it is for (default: chat)",
    )
    parser.add_argument(
        "--min-speed", type=float, metavar="X", help="tokens a second it has to write"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from kvant.api.advice import recommend

    found = recommend(
        arguments.source,
        device=arguments.device,
        ram=arguments.ram,
        context=arguments.context,
        use=arguments.use,
        min_speed=arguments.min_speed,
    )
    if arguments.json:
        show.print_json(found.to_json())
    else:
        _print(found)
    return 0


def _print(found: Recommendation) -> None:
    from kvant.units import size_text

    advice, pick = found.advice, found.advice.pick
    recipe = pick.variant.recipe
    level = recipe if advice.level == recipe else f"{advice.level} (in GGUF: {recipe})"
    m = pick.memory
    rows = [
        ("model", f"{found.model}, {found.parameters:,} weights"),
        ("device", f"{found.device}, {size_text(found.usable)} for a model"),
        ("level", level),
        ("format", advice.format),
        ("engine", advice.engine),
        ("file", f"{size_text(pick.variant.file_bytes)}, {pick.variant.bpw:.2f} bits per weight"),
        (
            "memory",
            f"{size_text(m.total)}: weights {size_text(m.weights)}, keys and values "
            f"{size_text(m.kv)} for {found.context:,} tokens, compute {size_text(m.compute)}, "
            f"process {size_text(m.process)}",
        ),
        ("writes", _speed(pick.generation)),
        ("reads", _speed(pick.prompt)),
        ("quality", _quality(advice.quality)),
    ]
    for name, value in rows:
        show.line(f"{name:<10}{value}")
    print()
    for reason in advice.reasons:
        show.line(f"because   {reason}")
    show.line(
        f"otherwise {_runner_up(advice.runner_up, advice.runner_up_quality)}"
        f"{advice.runner_up_reason}"
    )
    for note in (*advice.warnings, *found.notes):
        show.note(f"note: {note}")


def _speed(found: SpeedRange | None) -> str:
    if found is None:
        return "not known: nothing says how fast this is here"
    return f"about {_rate(found.low)} to {_rate(found.high)} tokens/s (an estimate)"


def _rate(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def _quality(found: Cited | None) -> str:
    if found is None:
        return "nothing was measured at this level"
    return f"KL divergence {found.kld:g} nats a token on {found.model} ({found.source})"


def _runner_up(found: Prediction | None, quality: Cited | None) -> str:
    from kvant.units import size_text

    if found is None:
        return ""
    kld = "" if quality is None else f", KL divergence {quality.kld:g}"
    return f"{found.variant.recipe}, {size_text(found.variant.file_bytes)}{kld}: "
