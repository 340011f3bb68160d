"""kvant as a process: imports, pipes, odd streams and letters, and never the network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kvant
from oracles.models import LLAMA, make_folder

Run = Callable[..., Any]

_IMPORTS = """
import sys
before = set(sys.modules)
import kvant
dir(kvant)
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
print(*sorted(name for name in sys.modules if name.startswith("kvant")))
"""


def test_importing_kvant_loads_nothing(spawn: Run) -> None:
    found = spawn("-c", _IMPORTS, python=())
    assert found.status == 0, found.err
    loaded, ours = map(str.split, found.out.splitlines())
    assert ours == ["kvant", "kvant.version"]
    heavy = {"numpy", "tokenizers", "jinja2", "tqdm", "xxhash", "json", "threading", "pathlib"}
    assert not heavy & set(loaded)


def test_help_loads_little(spawn: Run) -> None:
    code = "import sys\nfrom kvant.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: "
    code += "print(*sorted(sys.modules))"
    found = spawn("-c", code, python=())
    assert not {"numpy", "tokenizers", "kvant._core", "tqdm"} & set(found.out.split())


def test_public_names(spawn: Run) -> None:
    for name in kvant.__all__:
        assert getattr(kvant, name) is not None
    assert set(dir(kvant)) == set(kvant.__all__)
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = kvant.quantise


_OFFLINE = """
import socket, sys
def forbidden(*args, **kwargs):
    raise SystemExit("network")
socket.socket = socket.create_connection = socket.getaddrinfo = forbidden
import _socket
_socket.socket = forbidden
from kvant.cli.main import main
import json
for command in json.loads(sys.argv[1]):
    status = main(command)
    assert status == 0, (command, status)
"""


def test_no_command_touches_the_network(spawn: Run, tmp_path: Path) -> None:
    commands = [
        ["formats"],
        ["inspect", "demo"],
        ["convert", "demo", "-o", "a.gguf"],
        ["quantize", "a.gguf", "Q4_K_M", "-o", "b.gguf"],
        ["verify", "b.gguf", "--against", "demo"],
        ["eval", "b.gguf", "--against", "demo", "--context", "32", "--chunks", "2"],
    ]
    found = spawn("-c", _OFFLINE, json.dumps(commands), python=())
    assert found.status == 0, found.err
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("a.gguf", "b.evidence.json", "b.gguf", "b.md"),
    ]


def _shell(script: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(kvant.__file__).parent.parent), *sys.path])
    return subprocess.run(
        ["bash", "-c", script.replace("kvant", f"{sys.executable} -m kvant")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("command", ["formats", "inspect demo --json", "--help"])
def test_a_reader_that_goes_away(tmp_path: Path, command: str) -> None:
    done = _shell(f"set -o pipefail; kvant {command} | head -c 1", tmp_path)
    assert done.returncode in (0, 141)
    assert done.stderr.count("Traceback") == done.stderr.count("Error") == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_standard_output_that_is_full(tmp_path: Path) -> None:
    done = _shell("kvant formats > /dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "kvant: writing the output failed: No space left on device.\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_closed_streams(tmp_path: Path, closed: str) -> None:
    done = _shell(f"kvant quantize demo Q4_0 -o m.gguf {closed}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert kvant.verify(tmp_path / "m.gguf").ok


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_letters_the_terminal_does_not_know(spawn: Run, tmp_path: Path, encoding: str) -> None:
    folder = make_folder(tmp_path / "Blåbær", LLAMA)
    (folder / "README.md").write_text("---\nlicense: mit\nname: Blåbær – 蓝莓\n---\n")
    env = {"PYTHONIOENCODING": f"{encoding}:strict"}
    found = spawn("inspect", folder, **env)
    assert found.status == 0, found.err
    assert "It converts" in found.out
    found = spawn("inspect", folder, "--json", **env)
    assert json.loads(found.out)["info"]["name"] == "Blåbær – 蓝莓"
    found = spawn("quantize", folder, "Q8_0", "-o", "å.gguf", **env)
    assert found.status == 0, found.err
    assert (tmp_path / "å.gguf").exists()


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """Names of files are bytes; these are not UTF-8."""
    env = {"PYTHONIOENCODING": "utf-8:strict"}
    done = _shell("kvant quantize demo Q4_0 -o $'\\xff.gguf' && rm $'\\xff.gguf'", tmp_path, **env)
    assert done.returncode == 0, done.stderr
    done = _shell("kvant quantize demo Q4_0 -o $'\\xff.gguf' --json", tmp_path, **env)
    assert json.loads(done.stdout)["paths"] == ["\udcff.gguf"]


def test_thousands_of_threads(spawn: Run, tmp_path: Path) -> None:
    found = spawn("quantize", "demo", "Q4_0", "-o", "m.gguf", "--threads", "1000000")
    assert found.status == 0, found.err


def test_no_place_for_scratch_files(spawn: Run, tmp_path: Path) -> None:
    code = "import sys, tempfile\nfrom kvant.cli.main import main\n"
    code += "tempfile.tempdir = '/nowhere/at/all'\nsys.exit(main(['demo']))"
    found = spawn("-c", code, python=())
    assert found.status == 1
    assert found.err.startswith("kvant: /nowhere/at/all/")
    assert "Traceback" not in found.err


def test_one_processor(tmp_path: Path) -> None:
    done = _shell("taskset -c 0 kvant quantize demo Q4_0 -o a.gguf --json", tmp_path)
    if "taskset" in done.stderr:
        pytest.skip("taskset is not here")
    kvant.quantize("demo", "Q4_0", tmp_path / "b.gguf", threads=5)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
