"""Thousands of requests, good and bad, from many users at once: nothing leaks, nothing is mixed up.

Answers are compared with what the model wrote for the same prompt alone; of the server's and the
model's process, memory and descriptors are followed, and of the cache the blocks in use.

    python bench/serving_soak.py                       # 10,000 requests on the built-in model
    python bench/serving_soak.py --requests 1000 --clients 16
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import Bar, Report, add_options, kvant_command, machine, table
from serving_load import free_port

KINDS = {
    "whole": 30,
    "stream": 25,
    "embed": 5,
    "cancel": 12,
    "leave": 6,
    "oversized": 4,
    "malformed": 5,
    "too long": 3,
    "no such model": 3,
    "expired key": 4,
    "wrong key": 3,
}
"""What a request is, and how often. ``cancel`` goes away in the midst of an answer, ``leave``
before it."""
PROMPTS, TOKENS, BODY = 200, 24, 65536
GROWTH_MB, GROWTH_FDS = 12.0, 4
SAMPLES = 40
_PATIENCE = 900.0
"""Seconds until a request counts as lost; other work of the machine may hold it up for long."""
_WORDS = "dog cat bird fish king queen girl boy tree house river moon sun star boat"


@dataclass
class Sample:
    """What the processes hold, after so many requests."""

    done: int
    server_mb: float
    engine_mb: float
    server_fds: int
    engine_fds: int
    blocks: float


class Soak:
    """The server, its keys, and what is known of its answers."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.home = tempfile.mkdtemp(prefix="kvant-soak-")
        self.port = free_port()
        self.random = random.Random(arguments.seed)
        self.keys = [self._key(f"user{i}") for i in range(8)]
        self.expired = self._key("gone", "--expires", "1")
        self.watcher = self._key("watch", "--role", "operator")
        words = ["serve", "--port", self.port, "--model", "demo", "--api-key-required"]
        words += ["--max-body", BODY, "--kv-tokens", 8192, "--keep-alive", "-1"]
        self.log = Path(self.home, "log").open("wb")  # noqa: SIM115 - to the end
        self.process = subprocess.Popen(
            [*kvant_command(), *map(str, words)], stderr=self.log, env=self._environment()
        )
        self.expected: dict[str, str] = {}
        self.count: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.samples: list[Sample] = []

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "KVANT_HOME": self.home}

    def _key(self, name: str, *more: str) -> str:
        done = subprocess.run(
            [*kvant_command(), "key", "create", name, *more],
            env=self._environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    # ---- looking ---------------------------------------------------------------------------------

    def wait_until_ready(self) -> None:
        """Until it answers."""
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health"):
                    return
            except OSError:
                time.sleep(0.1)
        raise SystemExit("the server does not start")

    def metrics(self) -> str:
        """The figures."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/metrics")
        request.add_header("Authorization", f"Bearer {self.watcher}")
        with urllib.request.urlopen(request) as reply:
            text: str = reply.read().decode()
        return text

    def metric(self, name: str) -> float:
        """The sum of one."""
        rows = re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", self.metrics(), re.MULTILINE)
        return sum(map(float, rows))

    def engine_pid(self) -> int:
        """The model's process."""
        pid = self.process.pid
        kids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(kids[0])

    def sample(self) -> None:
        """Note what is held."""
        own, engine = self.process.pid, self.engine_pid()
        done = sum(self.count.values())
        blocks = self.metric("vllm:kv_cache_usage_perc")
        found = (_megabytes(own), _megabytes(engine), _descriptors(own), _descriptors(engine))
        self.samples.append(Sample(done, *found, blocks))

    # ---- asking ----------------------------------------------------------------------------------

    async def post(
        self, path: str, body: bytes, key: str, leave: int | None = None
    ) -> tuple[int, bytes]:
        """Status and body; ``leave`` ends the connection after so many pieces, 0 at once."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        try:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            head += f"Authorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            if leave == 0:
                await writer.drain()
                await asyncio.sleep(self.random.random() * 0.05)
                return 0, b""
            status = int((await reader.readline()).split()[1])
            while (await reader.readline()).strip():
                pass
            if leave is None:
                return status, await reader.read()
            for _ in range(leave):
                if not await reader.readline():
                    break
            return 0, b""
        finally:
            if leave is not None:
                writer.transport.abort()
            writer.close()

    async def one(self, kind: str) -> None:
        """One request; what is wrong with its answer is noted."""
        r = self.random
        prompt = r.choice(list(self.expected))
        key = r.choice(self.keys)
        ask: dict[str, Any] = {
            "model": "demo",
            "prompt": prompt,
            "max_tokens": TOKENS,
            "temperature": 0,
        }
        path, status, leave = "/v1/completions", 200, None
        body = b""
        if kind in ("cancel", "leave", "stream"):
            ask["stream"] = True
            leave = {"cancel": r.randrange(1, 30), "leave": 0, "stream": None}[kind]
        elif kind == "embed":
            path, ask = "/v1/embeddings", {"model": "demo", "input": [prompt, "x"]}
        elif kind == "oversized":
            ask["prompt"], status = "x" * (BODY + r.randrange(1, 10**6)), 413
        elif kind == "malformed":
            whole = json.dumps(ask).encode()
            body = r.choice([whole[: r.randrange(1, len(whole))], b"\xff" + whole, b"[1]", b"null"])
            status = 400
        elif kind == "too long":
            ask["prompt"], status = "word " * 3000, 400
        elif kind == "no such model":
            ask["model"], status = "../../etc/passwd", 404
        elif kind == "expired key":
            key, status = self.expired, 401
        elif kind == "wrong key":
            key, status = key[:-1] + "!", 401
        async with asyncio.timeout(_PATIENCE):
            got, raw = await self.post(path, body or json.dumps(ask).encode(), key, leave)
        if leave is None and got != status:
            self.wrong.append(f"{kind}: status {got}, not {status}: {raw[:200]!r}")
        elif leave is None and kind in ("whole", "stream"):
            text = _text(raw, kind == "stream")
            if text != self.expected[prompt]:
                self.wrong.append(f"{kind}: {text!r} for {prompt!r}")

    async def learn(self) -> None:
        """What each prompt gets alone."""
        words = _WORDS.split()
        for i in range(PROMPTS):
            a, b, c = (self.random.choice(words) for _ in range(3))
            self.expected[f"Story {i}: the {a} and the {b} met a {c}"] = ""
        for prompt in self.expected:
            ask = {"model": "demo", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
            status, raw = await self.post("/v1/completions", json.dumps(ask).encode(), self.keys[0])
            if status != 200:
                raise SystemExit(f"status {status}: {raw[:300]!r}")
            self.expected[prompt] = _text(raw, False)

    async def run(self) -> None:
        """Everything."""
        await self.learn()
        a = self.arguments
        kinds = self.random.choices(list(KINDS), list(KINDS.values()), k=a.requests)
        every = max(1, a.requests // SAMPLES)

        async def client() -> None:
            while kinds:
                kind = kinds.pop()
                try:
                    await self.one(kind)
                except (TimeoutError, OSError, IndexError, ValueError) as error:
                    self.wrong.append(f"{kind}: lost: {type(error).__name__} {error}")
                self.count[kind] += 1
                done = sum(self.count.values())
                if done % every == 0:
                    await asyncio.to_thread(self.sample)
                    told = f"  {done} of {a.requests}, {len(self.wrong)} wrong"
                    print(f"{told} {self.wrong[:1]}"[:300], file=sys.stderr, flush=True)

        await asyncio.gather(*(client() for _ in range(a.clients)))
        await asyncio.sleep(1)
        self.sample()


def _text(raw: bytes, stream: bool) -> str:
    if b"0\r\n\r\n" in raw[-8:] and stream:
        raw = b"".join(raw.split(b"\r\n")[1::2])
    if not stream:
        return str(json.loads(raw)["choices"][0]["text"])
    lines = (line[6:] for line in raw.split(b"\n") if line.startswith(b"data: {"))
    choices = (c for line in lines for c in json.loads(line)["choices"])
    return "".join(c["text"] for c in choices)


def _megabytes(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _descriptors(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def judge(soak: Soak, report: Report) -> None:
    """The bars."""
    samples, bar = soak.samples, report.bars.append
    settled, last = samples[len(samples) // 4], samples[-1]
    quiet = soak.metric("vllm:num_requests_running") + soak.metric("vllm:num_requests_waiting")
    bar(Bar("requests with a wrong answer, or none", len(soak.wrong), 0))
    bar(Bar("requests at work after the last", quiet, 0))
    bar(Bar("share of the cache in use after the last", last.blocks, 0))
    for who in ("server", "engine"):
        grown = getattr(last, f"{who}_mb") - getattr(settled, f"{who}_mb")
        bar(Bar(f"{who}: memory since the first quarter", grown, GROWTH_MB, unit=" MB"))
    # Connections of others come and go while the first sample is taken.
    least = min(s.server_fds for s in samples)
    bar(Bar("server: descriptors above the least seen", last.server_fds - least, GROWTH_FDS))
    grown = last.engine_fds - settled.engine_fds
    bar(Bar("engine: descriptors since the first quarter", grown, GROWTH_FDS))


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument("--seed", type=int, default=1)
    add_options(parser, peer=False, rounds=None)
    arguments = parser.parse_args()
    soak = Soak(arguments)
    report = Report("A soak: good and bad requests, many users", machine())
    report.head()
    try:
        soak.wait_until_ready()
        time.sleep(1)  # the key that expires has
        began = time.perf_counter()
        asyncio.run(soak.run())
        seconds = time.perf_counter() - began
        judge(soak, report)
    finally:
        soak.process.send_signal(signal.SIGTERM)
        soak.process.wait(60)
    verified = subprocess.run(
        [*kvant_command(), "audit", "verify"],
        env={**os.environ, "KVANT_HOME": soak.home},
        capture_output=True,
        text=True,
        check=False,
    )
    report.bars.append(Bar("audit log: broken", float(verified.returncode), 0))
    print(table(["kind", "requests"], sorted(soak.count.items())))
    print(f"{seconds:.0f} s; audit log: {verified.stdout.strip() or verified.stderr.strip()}")
    header = ["after", "server MB", "engine MB", "server fds", "engine fds", "blocks"]
    shown = soak.samples[:: max(1, len(soak.samples) // 10)]
    print(
        table(
            header,
            [
                [
                    s.done,
                    f"{s.server_mb:.1f}",
                    f"{s.engine_mb:.1f}",
                    s.server_fds,
                    s.engine_fds,
                    f"{s.blocks:.3f}",
                ]
                for s in shown
            ],
        )
    )
    for line in soak.wrong[:10]:
        print(line)
    report.results = [{"count": dict(soak.count), "wrong": soak.wrong[:100]}]
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
