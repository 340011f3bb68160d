"""The machine this runs on, read without changing or importing anything."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from kvant import _core
from kvant.engine.load import available_memory, processors

__all__ = ["RUNTIMES", "Gpu", "Machine", "machine", "total_memory", "warnings_for"]

RUNTIMES = {
    "onnxruntime": "ONNX Runtime",
    "onnxruntime-genai": "ONNX Runtime GenAI",
    "mlx": "MLX",
    "mlx-lm": "MLX LM",
    "vllm": "vLLM",
    "llama-cpp-python": "llama.cpp",
    "xllamacpp": "llama.cpp",
}
"""Package -> what it brings. Looked up by its metadata; importing some takes seconds."""

_SECONDS = 5
_AMD = "0x1002"


@dataclass(frozen=True, slots=True)
class Gpu:
    """A graphics processor; ``memory`` in bytes where the system tells it."""

    name: str
    vendor: str
    memory: int | None


@dataclass(frozen=True, slots=True)
class Machine:
    """What is there. Bytes; ``isas`` are the instruction sets kvant's kernels can use here."""

    system: str
    cpu: str
    architecture: str
    processors: int
    features: tuple[str, ...]
    isa: str
    isas: tuple[str, ...]
    memory_total: int
    memory_available: int
    disk_free: int
    disk: str
    gpus: tuple[Gpu, ...]
    runtimes: Mapping[str, str]

    @property
    def apple(self) -> bool:
        """Apple's own processors, which MLX is for."""
        return self.system.startswith("Darwin") and self.architecture == "arm64"

    def engine(self) -> tuple[str, str]:
        """Which engine would serve a model here, and why."""
        if self.apple and "mlx" in self.runtimes:
            return "MLX", "the GPU and the shared memory of Apple's chips; MLX is installed"
        if any(g.vendor == "NVIDIA" for g in self.gpus) and "vllm" in self.runtimes:
            return "vLLM", "an NVIDIA GPU serves many at once; vLLM is installed"
        return "kvant", f"its own engine on {self.processors} processors, with {self.isa} kernels"

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        engine, why = self.engine()
        found = asdict(self)
        found |= {"features": list(self.features), "isas": list(self.isas)}
        found |= {"gpus": [asdict(g) for g in self.gpus], "runtimes": dict(self.runtimes)}
        return {**found, "engine": engine, "engine_reason": why}


def machine(place: Path | None = None) -> Machine:
    """Describe this machine; ``place`` is the folder whose disk is looked at."""
    place = place or Path.cwd()
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        cpu=cpu_name(),
        architecture=platform.machine(),
        processors=processors(),
        features=tuple(_core.cpu_features()),
        isa=_core.current_isa(),
        isas=tuple(_core.isas()),
        memory_total=total_memory(),
        memory_available=available_memory(),
        disk_free=shutil.disk_usage(place).free,
        disk=str(place),
        gpus=tuple(_gpus()),
        runtimes=_runtimes(),
    )


def cpu_name() -> str:
    """The processor's name, as the system says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for key in ("model name", "Model", "Hardware"):
        for line in lines:
            if line.startswith(key) and (name := line.partition(":")[2].strip()):
                return name[:200]
    if platform.system() == "Darwin" and (
        out := _output("sysctl", "-n", "machdep.cpu.brand_string")
    ):
        return out.strip()[:200]
    return (platform.processor() or platform.machine() or "unknown")[:200]


def total_memory() -> int:
    """Bytes of memory, or what the process's control group allows if that is less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return min(total, int(limit)) if limit != "max" else total
    except (OSError, ValueError):
        return total


def _runtimes() -> dict[str, str]:
    found = {}
    for package in RUNTIMES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _gpus() -> list[Gpu]:
    return [*_nvidia(), *_amd(), *_apple()]


def _nvidia() -> list[Gpu]:
    query = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    found = []
    for line in _output("nvidia-smi", *query).splitlines():
        name, comma, size = line.rpartition(",")
        if comma:
            number = size.strip()
            memory = int(number) << 20 if number.isdecimal() else None
            found.append(Gpu(name.strip()[:100], "NVIDIA", memory))
    return found


def _amd(root: Path = Path("/sys/class/drm")) -> list[Gpu]:
    found = []
    for card in sorted(root.glob("card[0-9]*")):
        device = card / "device"
        try:
            if "-" in card.name or (device / "vendor").read_text().strip() != _AMD:
                continue
            name = (device / "product_name").read_text().strip() or "AMD GPU"
        except OSError:
            continue
        try:
            memory: int | None = int((device / "mem_info_vram_total").read_text())
        except (OSError, ValueError):
            memory = None
        found.append(Gpu(name[:100], "AMD", memory))
    return found


def _apple() -> list[Gpu]:
    if platform.system() != "Darwin":
        return []
    try:
        document = json.loads(_output("system_profiler", "-json", "SPDisplaysDataType") or "{}")
        entries = document.get("SPDisplaysDataType", [])
        return [Gpu(str(e.get("sppci_model", "GPU"))[:100], "Apple", None) for e in entries]
    except (ValueError, AttributeError):
        return []


def _output(*command: str) -> str:
    """What a program of the system prints; empty where it is not there or fails."""
    program = shutil.which(command[0])
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *command[1:]],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def warnings_for(found: Machine) -> list[str]:
    """What will get in the way, each with its remedy."""
    said = []
    if found.isa == "scalar":
        said.append(
            "The kernels run without vector instructions, many times slower: "
            + (
                f"KVANT_ISA is set to it; unset it to use {found.isas[0]}."
                if len(found.isas) > 1
                else "this processor has neither AVX2 nor AVX-512, or the system hides them."
            )
        )
    if found.memory_available < found.memory_total // 5:
        said.append(
            f"Only {found.memory_available / 1e9:.1f} of {found.memory_total / 1e9:.1f} GB of "
            "memory are free: close other programs before a large model is loaded."
        )
    if found.disk_free < 5 * 10**9:
        said.append(
            f"{found.disk}: only {found.disk_free / 1e9:.1f} GB are free; models take several."
        )
    if any(g.vendor == "NVIDIA" for g in found.gpus) and "vllm" not in found.runtimes:
        said.append("There is an NVIDIA GPU, and no vLLM: pip install vllm lets it serve.")
    if found.apple and "mlx" not in found.runtimes:
        said.append("MLX is not installed: pip install mlx-lm lets the GPU run models.")
    return said
