"""The whole server over HTTP: health, figures, bounds, disconnects, its end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from served import Served, environment, events, serving
from starlette.types import Message

from kvant.cli.main import main
from kvant.server.app import build
from kvant.server.backend import ServingBackend
from kvant.server.gate import Guards
from kvant.server.keys import KeyFile
from kvant.server.library import Library
from kvant.server.metrics import Metrics
from kvant.server.routes import api_routes
from kvant.server.settings import Settings

ASK = {"model": "demo", "prompt": "Once upon a time", "max_tokens": 16, "temperature": 0}
LONG = {**ASK, "max_tokens": 900, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("home")
    with serving(home, "--kv-tokens", "16384", "--max-body", "100KB", "--log-json") as found:
        yield found


def test_text_whole_and_in_pieces(server: Served) -> None:
    whole = server.http.post("/v1/completions", json=ASK)
    assert whole.status_code == 200
    text = whole.json()["choices"][0]["text"]
    with server.http.stream("POST", "/v1/completions", json={**ASK, "stream": True}) as reply:
        pieces = [e["choices"][0]["text"] for e in events(reply) if e["choices"]]
    assert "".join(pieces) == text
    assert len(pieces) > 4
    assert whole.headers["x-request-id"].startswith("req-")
    named = server.http.get("/health", headers={"x-request-id": "mine-7"})
    assert named.headers["x-request-id"] == "mine-7"


def test_health_and_page(server: Served) -> None:
    assert server.http.get("/health").json() == {"status": "ok"}
    assert server.http.get("/ready").json()["ready"] is True
    page = server.http.get("/", headers={"accept": "text/html"})
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert "<title>kvant</title>" in page.text


def test_metrics(server: Served) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    before = server.metric("vllm:generation_tokens_total")
    server.http.post("/v1/completions", json={**ASK, "ignore_eos": True})
    assert server.metric("vllm:generation_tokens_total") == before + 16
    families = {
        f.name: f for f in parser.text_string_to_metric_families(server.http.get("/metrics").text)
    }
    wanted = (
        *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"),
        *("prefix_cache_hits", "prefix_cache_queries", "prompt_tokens", "generation_tokens"),
        *("request_success", "time_to_first_token_seconds", "inter_token_latency_seconds"),
    )
    assert {f"vllm:{name}" for name in wanted} <= set(families)
    buckets = [
        s.value
        for s in families["vllm:time_to_first_token_seconds"].samples
        if s.name.endswith("_bucket")
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] >= 1


def test_who_goes_away_frees_the_engine(server: Served) -> None:
    with server.http.stream("POST", "/v1/completions", json=LONG) as reply:
        pieces = events(reply)
        next(pieces)
        assert server.metric("vllm:num_requests_running") == 1
    server.until(lambda: server.metric("vllm:num_requests_running") == 0)
    whole = {**LONG, "stream": False, "n": 16}  # longer than the client waits
    with pytest.raises(httpx.TimeoutException):
        server.http.post("/v1/completions", json=whole, timeout=0.2)
    server.until(lambda: server.metric("vllm:num_requests_running") == 0)
    server.until(lambda: server.metric("vllm:kv_cache_usage_perc") == 0)


def test_bodies(server: Served) -> None:
    large = server.http.post("/v1/completions", json={**ASK, "prompt": "x" * 200_000})
    assert large.status_code == 413
    assert "at most 100,000 bytes" in large.json()["error"]["message"]

    def parts() -> Iterator[bytes]:
        for _ in range(30):
            yield b" " * 10_000

    assert server.http.post("/v1/completions", content=parts()).status_code == 413
    for body in (b"", b"{", b"[]", b"\xff\xfe", b'{"model": 7}', b"[" * 50_000):
        reply = server.http.post("/v1/completions", content=body)
        assert reply.status_code == 400, body[:20]
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
    missing = server.http.post("/v1/completions", json={**ASK, "model": "/etc/passwd"})
    assert missing.status_code == 404
    assert server.http.get("/no/such/path").status_code == 404


def test_pages_of_other_sites_do_not_speak_for_the_user(server: Served) -> None:
    evil = server.http.get("/status", headers={"origin": "https://evil.example"})
    assert evil.status_code == 403
    assert "access-control-allow-origin" not in evil.headers
    rebound = server.http.get("/status", headers={"host": "evil.example"})
    assert rebound.status_code == 403
    own = server.http.get("/status", headers={"origin": server.url})
    assert own.status_code == 200
    for none in ({"host": "["}, {"host": "[::1"}, {"origin": "http://["}, {"origin": "http://[x]"}):
        assert server.http.get("/status", headers=none).status_code == 403, none


def test_a_client_s_own_mistakes(server: Served) -> None:
    """Each is 400, also where a stream was asked for; nobody else notices."""
    deep = '{"a":' + "[" * 3000 + "]" * 3000 + "}"
    for wrong in (
        {"logit_bias": {"99999": 1}},
        {"guided_json": deep},
        {"guided_json": '{"$ref": "#"}'},
        {"guided_grammar": "start: start"},
    ):
        whole = server.http.post("/v1/completions", json={**ASK, **wrong})
        assert whole.status_code == 400, (wrong, whole.text)
    late = server.http.post(
        "/v1/completions", json={**ASK, "stream": True, "logit_bias": {"99999": 1}}
    )
    assert late.status_code == 400
    missing = {"model": "x", "files": {"a.gguf": "sha256:" + "0" * 64}}
    assert server.http.post("/api/create", json=missing).status_code == 400
    base = {"model": "x", "from": "no/such"}
    assert server.http.post("/api/create", json=base).status_code == 404


def test_for_ever_is_no_date(server: Served) -> None:
    ask = {"model": "demo", "prompt": "x", "stream": False, "options": {"num_predict": 1}}
    for endless in (b"1e999", b"1e15", b'"999999999999999"'):
        body = json.dumps(ask)[:-1].encode() + b', "keep_alive": ' + endless + b"}"
        assert server.http.post("/api/generate", content=body).status_code == 200
        found = server.http.get("/api/ps").json()["models"]
        assert found[0]["expires_at"].startswith("9999")
        assert server.status()["models"][0]["expires"] is None
    again = {**ask, "keep_alive": "5m"}
    assert server.http.post("/api/generate", json=again).status_code == 200


def test_garbage_and_half_requests(server: Served) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for data in (
        b"\x16\x03\x01\x02",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\n",
    ):
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(data)
    assert server.http.get("/health").status_code == 200


def test_fair_and_nothing_mixed_up(server: Served) -> None:
    asked = [{**ASK, "prompt": f"The {w} said"} for w in ("dog", "cat", "king", "girl")] * 5
    alone = {a["prompt"]: server.http.post("/v1/completions", json=a).json() for a in asked[:4]}
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda a: server.http.post("/v1/completions", json=a), asked))
    for ask, reply in zip(asked, replies, strict=True):
        expected = alone[ask["prompt"]]["choices"][0]["text"]
        assert reply.json()["choices"][0]["text"] == expected


def test_log_has_no_prompts(server: Served) -> None:
    server.http.post("/v1/completions", json={**ASK, "prompt": "a secret phrase"})
    time.sleep(0.1)
    lines = [line for line in server.lines if '"path": "/v1/completions"' in line]
    assert lines
    assert not any("secret" in line for line in server.lines)


def test_port_that_is_taken(server: Served, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2]
    done = subprocess.run(
        [sys.executable, "-m", "kvant", "serve", "--port", port],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "is taken by another kvant" in done.stderr
    assert f"process {server.process.pid}" in done.stderr
    assert "--port " in done.stderr


def test_others_only_with_keys(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kvant", "serve", "--host", "0.0.0.0", "--port", "0"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "kvant key create" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_finishes_answers(tmp_path: Path, number: int) -> None:
    with serving(tmp_path, "--model", "demo", "--kv-tokens", "8192") as server:
        (model,) = server.status()["models"]
        assert model["name"] == "demo"
        body = {**LONG, "max_tokens": 400}
        with server.http.stream("POST", "/v1/completions", json=body) as reply:
            pieces = events(reply)
            next(pieces)
            server.process.send_signal(number)
            reasons = [e["choices"][0]["finish_reason"] for e in pieces if e["choices"]]
        assert reasons[-1] == "length"
        assert server.process.wait(20) == 0
    children = subprocess.run(
        ["ps", "--ppid", str(server.process.pid)], capture_output=True, check=False
    )
    assert b"kvant.server.worker" not in children.stdout


def test_kill_leaves_no_processes(tmp_path: Path) -> None:
    with serving(tmp_path, "--model", "demo") as server:
        pid = server.process.pid
        kids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert kids
        server.process.kill()
        server.process.wait()
        ends = time.monotonic() + 10
        while any(_runs(int(kid)) for kid in kids):
            assert time.monotonic() < ends
            time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_ps_and_stop(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    server.http.post("/v1/completions", json=ASK)
    assert main(["ps", "--server", server.url]) == 0
    assert "demo" in capsys.readouterr().out
    assert main(["stop", "demo", "--server", server.url]) == 0
    server.until(lambda: server.status()["models"] == [])
    assert main(["stop", "demo", "--server", server.url]) == 1
    assert "not loaded" in capsys.readouterr().err
    assert main(["ps", "--server", "127.0.0.1:9"]) == 1
    assert "kvant serve" in capsys.readouterr().err


def test_tls(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate, and is not here")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost")
    name = ("-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", str(key), "-out", str(cert))
    subprocess.run([openssl, *made, *name, *files], check=True, capture_output=True)
    with serving(tmp_path, "--tls-cert", str(cert), "--tls-key", str(key)) as server:
        assert server.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(cert))
        assert httpx.get(f"{server.url}/health", verify=context).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health")


def test_a_body_that_does_not_come(tmp_path: Path) -> None:
    """The gate alone: a request whose body stalls gets 408, one that is too long 413."""

    async def ask(parts: list[bytes], length: int | None = None) -> int:
        settings = Settings(folder=tmp_path, body_seconds=0.2, body=1000)
        backend = ServingBackend(settings, Library(), max_memory=1 << 30)
        guards = Guards(settings, KeyFile(tmp_path), Metrics(), None, backend)
        app = build(guards, api_routes(backend, Library(), None))
        sent: list[Message] = []

        async def receive() -> Message:
            if not parts:
                await asyncio.sleep(60)
            return {"type": "http.request", "body": parts.pop(0), "more_body": True}

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [(b"host", b"localhost")]
        if length is not None:
            headers.append((b"content-length", str(length).encode()))
        path = "/v1/completions"
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode()}
        scope |= {"headers": headers, "query_string": b"", "client": ("127.0.0.1", 1)}
        async with asyncio.timeout(20):
            await app(scope, receive, send)
        assert (b"connection", b"close") in sent[0]["headers"]
        status: int = sent[0]["status"]
        return status

    assert asyncio.run(ask([b'{"model"'])) == 408
    assert asyncio.run(ask([b" " * 600, b" " * 600])) == 413
    assert asyncio.run(ask([b" "], length=2000)) == 413


def test_a_bound_above_the_usual_holds_too(tmp_path: Path) -> None:
    """What the gate lets through is read."""

    async def ask(size: int) -> int:
        settings = Settings(folder=tmp_path, body=40 << 20)
        backend = ServingBackend(settings, Library(), max_memory=1 << 30)
        guards = Guards(settings, KeyFile(tmp_path), Metrics(), None, backend)
        app = build(guards, api_routes(backend, Library(), None))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return (await http.post("/v1/completions", content=b" " * size + b"{")).status_code

    assert asyncio.run(ask(36 << 20)) == 400
    assert asyncio.run(ask(41 << 20)) == 413


def test_a_model_loads_while_others_answer(tmp_path: Path) -> None:
    """The event loop is never blocked: health answers while a model is opened and loaded."""
    with (
        serving(tmp_path, "--kv-tokens", "8192") as server,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        asking = pool.submit(server.http.post, "/v1/completions", json=ASK)
        count = 0
        with httpx.Client(base_url=server.url) as other:
            while not asking.done():
                assert other.get("/health").status_code == 200
                count += 1
        assert asking.result().status_code == 200
    assert count > 3  # a loop that is blocked answers once, at the end
