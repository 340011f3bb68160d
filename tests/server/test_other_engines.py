"""Which engine serves what, and other engines behind the same face."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from served import environment

import kvant
from kvant.builtin import demo_path
from kvant.devices.engines import choose, form_of
from kvant.devices.machine import Gpu, Machine, machine
from kvant.errors import ContextError, MissingExtraError, UnsupportedError, UsageError
from kvant.server.backend import ServingBackend
from kvant.server.engine_process import EngineSpec
from kvant.server.external import ExternalEngine
from kvant.server.jobs import EmbedJob, EngineLostError, Job
from kvant.server.library import Library
from kvant.server.prepare import Defaults
from kvant.server.settings import Settings

ASK = Job(model="m", prompt="Once upon a time", max_tokens=12, sampling={"temperature": 0})


@pytest.fixture(scope="module")
def here() -> Machine:
    return replace(machine(), gpus=(), runtimes={}, system="Linux 6", architecture="x86_64")


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    folders = {"folder": {}, "mlx": {"quantization": {"group_size": 64, "bits": 4}}, "onnx": {}}
    found = {"gguf": gguf}
    for name, config in folders.items():
        found[name] = tmp_path / name
        found[name].mkdir()
        (found[name] / "config.json").write_text(json.dumps(config))
    (found["onnx"] / "genai_config.json").write_text("{}")
    return found


def test_choices(here: Machine, models: dict[str, Path]) -> None:
    assert {name: form_of(path) for name, path in models.items()} == {n: n for n in models}
    nvidia = replace(here, gpus=(Gpu("H100", "NVIDIA", None),), runtimes={"vllm": "1"})
    apple = replace(here, system="Darwin 24", architecture="arm64", runtimes={"mlx-lm": "1"})
    genai = replace(here, runtimes={"onnxruntime-genai": "1"})
    expected = {
        "plain": (here, "native", "native", "native", None),
        "nvidia": (nvidia, "native", "vllm", "native", None),
        "apple": (apple, "native", "mlx", "mlx", None),
        "genai": (genai, "native", "native", "native", "onnxruntime-genai"),
    }
    for found, *engines in expected.values():
        for (_, path), engine in zip(models.items(), engines, strict=True):
            if engine is None:
                with pytest.raises(MissingExtraError, match="pip install onnxruntime-genai"):
                    choose(found, path)
            else:
                choice = choose(found, path)
                assert choice.engine == engine
                assert set(choice.others) | {engine} == {
                    "native",
                    "mlx",
                    "vllm",
                    "onnxruntime-genai",
                }
    assert choose(nvidia, models["folder"], "native").engine == "native"
    with pytest.raises(MissingExtraError, match="pip install vllm"):
        choose(here, models["folder"], "vllm")
    with pytest.raises(UnsupportedError, match="GGUF"):
        choose(nvidia, models["gguf"], "vllm")
    with pytest.raises(UsageError, match="--engine is auto"):
        choose(here, models["gguf"], "torch")


def _run(engine: str, model: Path, work: Callable[[ServingBackend], Awaitable[None]]) -> None:
    async def whole() -> None:
        settings = Settings(engine=engine, tensor_parallel=2)
        backend = ServingBackend(settings, Library((f"m={model}",)), max_memory=4 << 30)
        if engine == "vllm":
            backend._machine = replace(machine(), runtimes={"vllm": "0"})
        try:
            async with asyncio.timeout(300):
                await work(backend)
        finally:
            await backend.close()

    asyncio.run(whole())


async def _text(backend: ServingBackend, job: Job) -> str:
    return "".join([d.text async for d in await backend.answer(job)])


@pytest.fixture(scope="module")
def expected() -> tuple[str, str]:
    with kvant.load("demo") as model:
        sampling = kvant.Sampling(temperature=0)
        text = model.generate(str(ASK.prompt), sampling, max_tokens=12).text
        talk = [{"role": "user", "content": "Hello"}]
        return text, model.chat(talk, sampling, max_tokens=12).text


def _talk() -> Job:
    return replace(ASK, prompt=None, messages=[{"role": "user", "content": "Hello"}])


def test_vllm_is_started_watched_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: tuple[str, str]
) -> None:
    """A program called vllm that takes its options and serves its API: kvant itself."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        "a = sys.argv\n"
        f"open({str(tmp_path / 'seen')!r}, 'w').write(' '.join(a[1:]))\n"
        "value = lambda name: a[a.index(name) + 1]\n"
        "assert a[1] == 'serve' and value('--host') == '127.0.0.1'\n"
        "model = value('--served-model-name') + '=' + a[2]\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'kvant', 'serve', '--model', model,\n"
        "    '--port', value('--port'), '--kv-tokens', '4096'])\n"
    )
    program.chmod(0o755)
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    async def work(backend: ServingBackend) -> None:
        assert await _text(backend, ASK) == expected[0]
        running = await backend.answer(_talk())
        assert "".join([d.text async for d in running]) == expected[1]
        assert (running.completion_tokens, running.outcome) == (12, "length")
        assert running.chat_template
        assert "--tensor-parallel-size 2" in (tmp_path / "seen").read_text()
        with pytest.raises(ContextError):
            await backend.answer(replace(ASK, prompt="word " * 3000))
        with pytest.raises(UnsupportedError, match="Log probabilities"):
            await _text(backend, replace(ASK, sampling={"logprobs": 1}))
        with pytest.raises(UnsupportedError, match="embeddings"):
            await backend.embed(EmbedJob(model="m", inputs=["x"]))
        long = await backend.answer(replace(ASK, max_tokens=800, ignore_end=True))
        async for _ in long:
            break
        engine: Any = backend._slots["m"].engine
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineLostError):
            async for _ in long:
                pass
        assert await _text(backend, ASK) == expected[0]

    _run("vllm", demo_path(), work)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ExternalEngine]:
    """Installs a program called vllm: Python that has its port in ``port``."""
    place = tmp_path / "bin" / "vllm"
    place.parent.mkdir()
    monkeypatch.setenv("PATH", f"{place.parent}{os.pathsep}{os.environ['PATH']}")

    def install(text: str) -> ExternalEngine:
        port = "import sys\nport = int(sys.argv[sys.argv.index('--port') + 1])\n"
        place.write_text(f"#!{sys.executable}\n{port}{text}")
        place.chmod(0o755)
        return ExternalEngine("vllm", None)

    return install


def _spec() -> EngineSpec:
    return EngineSpec(
        path=demo_path(),
        adapter=None,
        defaults=Defaults(),
        threads=1,
        kv_type="f16",
        parallel=2,
        queue=2,
        draft=None,
    )


def test_all_its_processes_end(tmp_path: Path, program: Callable[[str], ExternalEngine]) -> None:
    """Engines start workers, and say much that nobody reads: neither outlives them."""
    engine = program(
        "import http.server, subprocess\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "for _ in range(100): print('x' * 10000, flush=True)\n"
        "class Health(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200)\n"
        "        self.end_headers()\n"
        "http.server.HTTPServer(('127.0.0.1', port), Health).serve_forever()\n"
    )

    async def work() -> None:
        await engine.start(_spec())
        async with asyncio.timeout(30):
            await engine.load(512, 512)
        task_that_never_began = engine.answer(ASK)
        engine._tasks[task_that_never_began.number].cancel()
        with pytest.raises(EngineLostError):
            async with asyncio.timeout(5):
                await task_that_never_began.admitted
        assert engine._tasks == {}
        await engine.close()

    asyncio.run(work())
    child = int((tmp_path / "child").read_text())
    ends = time.monotonic() + 5
    while _runs(child):
        assert time.monotonic() < ends
        time.sleep(0.01)
    assert not any(t.name.startswith("prepare") for t in threading.enumerate())


def _runs(pid: int) -> bool:
    """Whether a process is there and not only waits for its parent to hear of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_why_it_did_not_begin(program: Callable[[str], ExternalEngine]) -> None:
    engine = program("print('x' * 100000)\nsys.exit('for this reason')\n")

    async def work() -> None:
        await engine.start(_spec())
        with pytest.raises(EngineLostError, match="for this reason"):
            await engine.load(512, 512)
        await engine.close()

    asyncio.run(work())


def test_mlx(expected: tuple[str, str]) -> None:
    pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

    async def work(backend: ServingBackend) -> None:
        assert await _text(backend, ASK) == expected[0]
        assert await _text(backend, _talk()) == expected[1]

    _run("mlx", demo_path(), work)


def test_onnxruntime_genai(tmp_path: Path, expected: tuple[str, str]) -> None:
    pytest.importorskip("onnxruntime_genai", reason="onnxruntime-genai is not installed")
    target = pytest.importorskip("kvant.export.onnx.target", reason="no ONNX target")
    from kvant.api.source import open_source
    from kvant.export.target import TargetOptions

    folder = tmp_path / "onnx"
    target.TARGET.write(open_source("demo"), folder, None, TargetOptions(dtype="float32"))

    async def work(backend: ServingBackend) -> None:
        together = await asyncio.gather(*(_text(backend, job) for job in (ASK, _talk(), ASK)))
        assert list(together) == [expected[0], expected[1], expected[0]]
        running = await backend.answer(replace(ASK, max_tokens=500, ignore_end=True))
        async for _ in running:
            break
        await running.aclose()
        await asyncio.sleep(0.2)
        assert backend.loaded()[0].running == 0

    _run("auto", folder, work)
