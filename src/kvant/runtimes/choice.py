"""Which runtime runs what, which one is chosen where nobody says, and what a report calls it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias, get_args

from kvant.checkpoint.kind import FORMAT_NAMES, ModelFormat
from kvant.errors import UsageError
from kvant.runtimes import llama_cpp, mlx, onnxruntime
from kvant.runtimes.artefact import Artefact, describe

__all__ = [
    "RUNNERS",
    "RunnerChoice",
    "RunnerName",
    "check_choice",
    "choose",
    "choose_each",
    "own_runner",
    "runner_label",
]

RunnerName: TypeAlias = Literal["native", "reference", "onnxruntime", "mlx", "llama.cpp"]

RUNNERS: tuple[RunnerName, ...] = get_args(RunnerName)

RunnerChoice: TypeAlias = RunnerName | Mapping[ModelFormat, RunnerName] | None
"""One for all models, one for some formats, or None: the usual one for each."""

_OWN: dict[ModelFormat, RunnerName] = {"gguf": "llama.cpp", "onnx": "onnxruntime", "mlx": "mlx"}
"""What a format was made for, besides kvant."""
_FORMATS: dict[RunnerName, tuple[ModelFormat, ...]] = {
    "onnxruntime": ("onnx",),
    "mlx": ("mlx", "hf"),
    "llama.cpp": ("gguf",),
}
_INSTALLED = {
    "onnxruntime": onnxruntime.installed,
    "mlx": mlx.installed,
    "llama.cpp": llama_cpp.installed,
}
_VERSIONS = {
    "onnxruntime": onnxruntime.version_text,
    "mlx": mlx.version_text,
    "llama.cpp": llama_cpp.version_text,
}


def choose(artefact: Artefact, choice: RunnerChoice = None) -> RunnerName:
    """The runner for an artefact.

    Without a choice: GGUF files and Hugging Face folders run on kvant's engine, ONNX folders on
    ONNX Runtime, MLX folders on MLX where it has a GPU. Where the runtime is not there they run on
    kvant's engine with the weights as kvant decodes them, and so do compressed-tensors folders:
    vLLM is no runtime that could be asked for logits.

    Raises:
        UsageError: what was chosen does not run this format, or there is no such runner.
        KvantError: kvant cannot read the weights, and nothing else is installed that could.
    """
    chosen = choice.get(artefact.format) if isinstance(choice, Mapping) else choice
    if chosen is not None:
        check_choice(chosen)
        _check_runs(artefact, chosen)
        return chosen
    own = _OWN.get(artefact.format)
    if own is None or artefact.format == "gguf":
        return "native"
    usable = _INSTALLED[own]() and (own != "mlx" or mlx.has_gpu())
    return own if usable or artefact.checkpoint is None else "native"


def choose_each(artefacts: Sequence[Artefact], choice: RunnerChoice = None) -> list[RunnerName]:
    """As `choose`, for all models of a command.

    Raises:
        UsageError: as `choose`; a runner was chosen for a format that none of them has.
    """
    if isinstance(choice, Mapping):
        formats = {artefact.format for artefact in artefacts}
        for name, runner in choice.items():
            if name not in formats:
                raise UsageError(
                    f"--runner {name}={runner} changes nothing: none of the models is of that "
                    f"format, but {', '.join(sorted(formats))}. Leave it out."
                )
    return [choose(artefact, choice) for artefact in artefacts]


def own_runner(artefact: Artefact) -> RunnerName:
    """The runtime its format was made for.

    Raises:
        UsageError: there is none that kvant can ask.
    """
    if artefact.format in _OWN:
        return _OWN[artefact.format]
    what = "vLLM" if artefact.format == "vllm" else "transformers"
    raise UsageError(
        f"{describe(artefact)}: was made for {what}, which kvant does not run. A GGUF file, an "
        "ONNX folder or an MLX folder can be checked so."
    )


def check_choice(name: str) -> None:
    """Refuse what is no runner.

    Raises:
        UsageError: it is not; says which there are.
    """
    if name not in RUNNERS:
        raise UsageError(f"There is no runner {name!r}; choose one of {', '.join(RUNNERS)}.")


def _check_runs(artefact: Artefact, name: RunnerName) -> None:
    formats = _FORMATS.get(name)
    if formats is None:
        if artefact.checkpoint is None and artefact.refusal is not None:
            raise artefact.refusal
    elif artefact.format not in formats:
        own = _OWN.get(artefact.format)
        names = [*(["native", "reference"]), *([own] if own else [])]
        taken = " and ".join(FORMAT_NAMES[f] for f in formats)
        raise UsageError(
            f"{describe(artefact)}: {name} runs {taken}. Choose {', '.join(names[:-1])} or "
            f"{names[-1]} for this one, or name a format with it: --runner {formats[0]}={name}."
        )


def runner_label(artefact: Artefact, name: RunnerName) -> str:
    """What a table says: the runtime and its version, and where it is not what the format is for.

    ``dequantised`` stands where kvant runs a format of others: the weights are those of the file,
    decoded; the arithmetic is kvant's, in float32.
    """
    if name in _VERSIONS:
        return _VERSIONS[name]()
    return f"{name}, dequantised" if artefact.dequantised else name
