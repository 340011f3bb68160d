"""Kill -9 at random moments of pull, create, push, rm and cp: is the store whole afterwards?

Each time a child process does one thing with a store that is used again and again, and is killed at
a random moment of it. Then every byte of every listed model is read and compared with its digest,
every listed model is opened, and a model that a push left in the registry has all its blobs. At the
end each thing is done once more without a kill, and what nobody needs is collected.

    python bench/store_kills.py --kills 200

Needs Debian's docker-registry for push and pull; without it they are left out, and it says so.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kvant.api.models import store as open_store
from kvant.checkpoint import open_checkpoint
from kvant.registry import AbsentError, Store
from kvant.registry.oci import Registry


@dataclass
class Bench:
    """A store, perhaps a registry, and what was found."""

    home: Path
    host: str | None
    random: random.Random
    times: dict[str, float] = field(default_factory=dict)
    killed: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    count: int = 0

    @property
    def store(self) -> Store:
        """The store, opened anew."""
        return open_store(self.home / "store")

    def operations(self) -> dict[str, Callable[[], object]]:
        """What is done, by name; each finds something to do whatever was killed before."""
        store, turn = self.store, self.count
        found: dict[str, Callable[[], object]] = {
            "create": lambda: store.create(f"made:{turn % 5}", f"FROM demo\nSYSTEM turn {turn}"),
            "create --quantize": lambda: store.create(
                f"small:{turn % 5}", f"FROM demo\nSYSTEM turn {turn}", quantize="Q4_0"
            ),
            "rm": lambda: store.remove(*[e.name for e in store.list() if "base" not in e.name][:3]),
            "cp": lambda: store.copy("base", f"copy:{turn % 3}"),
        }
        if self.host is not None:
            found["pull"] = self._pull
            found["push"] = lambda: store.push("base", f"oci://{self.host}/kill/{turn}:1")
        return found

    def _pull(self) -> None:
        """From the registry, into what has nothing of it but what an earlier try left."""
        store = self.store
        place = f"{self.host}/base:1"
        if place in store:
            store.remove(place)
        store.pull(f"oci://{place}")

    def prepare(self) -> None:
        """A model to work with, in the registry too; and how long each thing takes."""
        with tempfile.TemporaryDirectory() as other:
            elsewhere = open_store(other)
            elsewhere.create("base", "FROM demo", quantize="bf16")
            if self.host is not None:
                elsewhere.push("base", f"oci://{self.host}/base:1")
        # Another file than the registry's, so that a pull has something to fetch.
        self.store.create("base", "FROM demo", quantize="q8_0")
        for name in self.operations():
            start = time.perf_counter()
            self._child(name, None)
            self.times[name] = time.perf_counter() - start
            self.count += 1

    def kill_once(self, name: str) -> None:
        """Do one thing, kill it, look at everything."""
        self._child(name, self.random.uniform(0, 1.1 * self.times[name]))
        self.count += 1
        self.look(name)

    def _child(self, name: str, after: float | None) -> None:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                self.operations()[name]()
                status = 0
            except BaseException as error:  # said by the parent's count of failures
                print(f"{name}: {error}", file=sys.stderr)
            finally:
                os._exit(status)
        if after is not None:
            time.sleep(after)
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            self.killed[name] += 1
        elif os.WEXITSTATUS(status):
            self.problems.append(f"{name}: failed by itself")
        else:
            self.ended[name] += 1

    def look(self, after: str) -> None:
        """Every byte and every listed model; what a push left in the registry."""
        store = self.store
        self.problems += [f"after {after}: {p}" for p in store.verify().problems]
        self.problems += [f"after {after}: {n} is listed in part" for n in store.incomplete()]
        for entry in store.list():
            open_checkpoint(store.resolve(entry.name).path)
        if after == "push" and self.host is not None:
            there = Registry(self.host, f"kill/{self.count - 1}")
            try:
                manifest = there.manifest("1")
            except AbsentError:
                return
            missing = [b.digest for b in manifest.blobs if not there.has_blob(b.digest)]
            self.problems += [f"the registry lists a model without {d}" for d in missing]

    def finish(self) -> None:
        """Everything works as before, and nothing stays that nobody needs."""
        for name in self.operations():
            self._child(name, None)
            self.count += 1
            self.look(name)
        store = self.store
        store.remove(*[entry.name for entry in store.list()])
        left = list((store.root / "blobs" / "sha256").iterdir())
        left += list((store.root / "views").iterdir())
        left += list((store.root / "work").glob("*"))
        self.problems += [f"left over: {path}" for path in left]


def start_registry(home: Path) -> tuple[str | None, subprocess.Popen[bytes] | None]:
    """Debian's registry on loopback, where it is installed."""
    program = shutil.which("docker-registry")
    if program is None:
        print("docker-registry is not installed: no pull and no push", file=sys.stderr)
        return None, None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = home / "registry.yml"
    config.write_text(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n"
        f"    rootdirectory: {home / 'registry'}\nhttp:\n  addr: 127.0.0.1:{port}\n"
    )
    process = subprocess.Popen(
        [program, "serve", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(400):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=2).close()
            break
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    return f"127.0.0.1:{port}", process


def main() -> int:
    """Run it; 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        host, process = start_registry(home)
        try:
            bench = Bench(home, host, random.Random(arguments.seed))
            bench.prepare()
            bench.ended.clear()
            names = list(bench.operations())
            start = time.perf_counter()
            while bench.killed.total() < arguments.kills and not bench.problems:
                bench.kill_once(names[bench.count % len(names)])
            bench.finish()
        finally:
            if process is not None:
                process.terminate()
                process.wait()
    print(f"{'operation':20}{'takes':>9}{'killed':>8}{'too late':>10}")
    for name in names:
        late = bench.ended[name] - 1  # once it was meant to end
        print(f"{name:20}{bench.times[name]:8.3f}s{bench.killed[name]:8}{late:10}")
    seconds = time.perf_counter() - start
    print(f"{bench.killed.total()} kills in {seconds:.0f} s, seed {arguments.seed}")
    for problem in bench.problems:
        print(problem)
    print(
        "a problem was found" if bench.problems else "every store was whole, no half model listed"
    )
    return 1 if bench.problems else 0


if __name__ == "__main__":
    sys.exit(main())
