"""``kvant doctor``: what this machine has, and what will get in the way."""

from __future__ import annotations

import argparse

from kvant.cli import show
from kvant.cli.options import Commands

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "doctor", help="describe this machine: processor, memory, GPUs, runtimes, warnings"
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="say which engine serves it here, and why"
    )
    parser.add_argument(
        "--measure", action="store_true", help="measure how fast memory is read (half a second)"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from kvant.api.advice import doctor
    from kvant.units import size_text

    found = doctor(measure=arguments.measure)
    choice = None
    if arguments.model is not None:
        from kvant.api.advice import engine_for

        choice = engine_for(arguments.model, found.machine)
    if arguments.json:
        more = {} if choice is None else {"serves": choice.to_json()}
        show.print_json({**found.to_json(), **more})
        return 0
    m = found.machine
    engine, why = m.engine()
    gpus = ", ".join(
        g.name + (f" ({size_text(g.memory)})" if g.memory is not None else "") for g in m.gpus
    )
    rows = [
        ("system", f"{m.system}, {m.architecture}"),
        ("processor", f"{m.cpu}, {m.processors} usable"),
        ("features", " ".join(m.features)),
        ("kernels", f"{m.isa} (of {', '.join(m.isas)})"),
        ("memory", f"{size_text(m.memory_total)}, {size_text(m.memory_available)} available"),
        ("disk", f"{size_text(m.disk_free)} free at {m.disk}"),
        ("GPUs", gpus or "none found"),
        ("runtimes", ", ".join(f"{k} {v}" for k, v in m.runtimes.items()) or "kvant's own only"),
        ("engine", f"{engine}: {why}"),
    ]
    if choice is not None:
        rows[-1] = ("engine", f"{choice.engine}: {choice.why}")
        rows += [("", f"not {name}: it {why}") for name, why in choice.others.items()]
    if found.bandwidth is not None:
        rows.append(("bandwidth", f"{found.bandwidth / 1e9:.1f} GB/s read, measured"))
    for name, value in rows:
        show.line(f"{name:<11}{value}")
    for warning in found.warnings:
        show.note(f"warning: {warning}")
    return 0
