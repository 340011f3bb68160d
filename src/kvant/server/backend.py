"""Models by name, each in a process of its own, under one bound of memory.

A request waits for its model to be there, is admitted or refused, and runs. A model that nobody
uses goes after a while, or when another needs its memory, the one unused for longest first.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import replace

from kvant.devices.engines import choose
from kvant.devices.machine import Machine, machine
from kvant.errors import ContextError
from kvant.server import scope as scopes
from kvant.server import wire
from kvant.server.capacity import PROCESS_BYTES, room_for
from kvant.server.engine_process import EngineProcess, EngineSpec
from kvant.server.external import ExternalEngine
from kvant.server.jobs import (
    BusyError,
    DeadlineError,
    Embedded,
    EmbedJob,
    EngineLostError,
    Job,
    LoadedModel,
    ModelNotFoundError,
    Timings,
)
from kvant.server.library import Library, Resolved
from kvant.server.running import Running, Watcher
from kvant.server.settings import Settings
from kvant.server.slot import AnyEngine, Slot, until

__all__ = ["ServingBackend"]

_MEMORY_PATIENCE = 30.0
"""Seconds a request waits until other models' answers are done and their memory free."""


class ServingBackend:
    """Implements `kvant.server.jobs.Backend`. For one event loop."""

    def __init__(
        self,
        settings: Settings,
        library: Library,
        *,
        max_memory: int,
        watchers: Sequence[Watcher] = (),
    ) -> None:
        self._settings, self._library, self.max_memory = settings, library, max_memory
        self._watchers = list(watchers)
        self._slots: dict[str, Slot] = {}
        self._memory: dict[AnyEngine, int] = {}  # bytes of processes, until they have ended
        self._loading = asyncio.Lock()
        self._freed = asyncio.Event()
        self._users: Counter[str] = Counter()
        self._machine: Machine | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.draining = False

    # ---- what the HTTP side asks -----------------------------------------------------------------

    async def answer(self, job: Job) -> Running:
        """Begin to answer; see `kvant.server.jobs.Backend.answer`."""
        loop = asyncio.get_running_loop()
        seconds = self._seconds(job.deadline)
        ends = loop.time() + seconds
        job = replace(job, user=self._user(job.user))
        slot = await self._admit(job.model, job.user)
        try:
            began = time.perf_counter()
            async with until(ends, seconds):
                engine = await self._engine(slot, job.context)
            load = time.perf_counter() - began
            stream = engine.answer(job)
        except BaseException as error:
            self._leave(slot, job.user, job.keep_alive)
            self._refused(slot.name, job.user, error)
            raise
        running = Running(slot.name, job, stream, load)
        timer = loop.call_at(ends, stream.expire, seconds)
        stream.on_end = lambda: self._ended(slot, running, timer)
        try:
            await stream.admitted
        except BaseException:
            stream.stop("cancelled")
            raise
        return running

    async def embed(self, job: EmbedJob) -> Embedded:
        """Vectors of texts; see `kvant.server.jobs.Backend.embed`."""
        seconds = self._seconds(job.deadline)
        ends = asyncio.get_running_loop().time() + seconds
        user = self._user(job.user)
        slot = await self._admit(job.model, user)
        try:
            began = time.perf_counter()
            async with until(ends, seconds):
                engine = await self._engine(slot, None)
                loaded = time.perf_counter()
                found = await engine.embed(job)
            timings = Timings(load=loaded - began, prompt=time.perf_counter() - loaded)
        except BaseException as error:
            self._refused(slot.name, user, error)
            raise
        finally:
            self._leave(slot, user, job.keep_alive)
        for watcher in self._watchers:
            watcher.embedded(slot.name, user, found["tokens"])
        return Embedded(slot.name, wire.vectors_from(found), found["tokens"], timings)

    async def load(self, model: str, keep_alive: float | None = None) -> None:
        """Load a model, or set how long it stays."""
        user = self._user("")
        slot = await self._admit(model, user)
        try:
            await self._engine(slot, None)
        finally:
            self._leave(slot, user, keep_alive)

    async def unload(self, model: str) -> bool:
        """Give a model's memory back when its answers are done; whether it was loaded."""
        # What was removed meanwhile may be loaded still: its memory can be had back all the same.
        slot = self._slots.get(model) or self._slots.get(f"{model}:latest")
        if slot is None or not scopes.visible(slot.name):
            slot = self._slots.get((await self._resolve(model)).name)
        if slot is None or slot.engine is None:
            return False
        slot.keep_alive = 0.0
        slot.expires = time.time()
        if not slot.asked:
            await self._unload(slot)
        return True

    def loaded(self) -> Sequence[LoadedModel]:
        """Models in memory."""
        found = []
        for slot in self._slots.values():
            if not slot.ready:
                continue
            engine = slot.engine
            assert engine is not None
            running = int(engine.stats.get("running", 0))
            found.append(
                LoadedModel(
                    name=slot.name,
                    digest=slot.resolved.digest,
                    size=slot.resolved.size,
                    memory=self._memory.get(engine, 0),
                    context=engine.context,
                    running=min(running, slot.asked),
                    waiting=max(0, slot.asked - running),
                    expires=slot.leaves,
                )
            )
        return found

    def stats(self) -> dict[str, dict[str, float]]:
        """What the engines say of themselves, by model."""
        return {s.name: dict(s.engine.stats) for s in self._slots.values() if s.engine is not None}

    # ---- admission -------------------------------------------------------------------------------

    def _user(self, given: str) -> str:
        scope = scopes.current.get()
        if scope is None or (scope.principal.local and given):
            return given
        return scope.principal.name

    def _seconds(self, deadline: float | None) -> float:
        most = self._settings.deadline
        return most if deadline is None else min(deadline, most)

    async def _resolve(self, model: str) -> Resolved:
        # Of a model that is loaded too: it may have been removed, or made anew, meanwhile. Looks at
        # the disk: not in the event loop.
        loop = asyncio.get_running_loop()
        resolved = await loop.run_in_executor(None, self._library.resolve, model)
        if not scopes.visible(resolved.name):
            # What somebody may not use is not there for them.
            raise ModelNotFoundError(f"There is no model called {model!r} here for this key.")
        return resolved

    async def _admit(self, model: str, user: str) -> Slot:
        """The slot of a model, with one more request counted; `_leave` ends that."""
        if self.draining:
            raise BusyError("The server is shutting down. Ask another one, or again later.", 5.0)
        resolved = await self._resolve(model)
        slot = self._slots.get(resolved.name)
        if slot is None:  # among the others once somebody is counted in it
            slot = Slot(resolved, resolved, keep_alive=self._settings.keep_alive)
        slot.newest = resolved
        bound = self._settings.parallel + self._settings.queue
        if slot.asked >= bound:
            wait = self._wait(slot)
            error = BusyError(
                f"{slot.asked} requests wait for {slot.name} or run, as many as may. Ask again in "
                f"about {wait:.0f} seconds.",
                wait,
            )
            self._refused(slot.name, user, error)
            raise error
        most = self._settings.per_user
        if most is not None and self._users[user] >= most:
            wait = self._wait(slot)
            error = BusyError(
                f"You have {self._users[user]} requests under way, as many as one may. Wait for "
                "one of them.",
                wait,
            )
            self._refused(slot.name, user, error)
            raise error
        self._slots[slot.name] = slot
        slot.asked += 1
        self._users[user] += 1
        if slot.timer is not None:
            slot.timer.cancel()
            slot.timer = None
        return slot

    def _wait(self, slot: Slot) -> float:
        """Seconds until there is room again, about."""
        rounds = slot.asked / self._settings.parallel
        return min(60.0, max(1.0, slot.seconds * rounds))

    def _refused(self, model: str, user: str, error: BaseException) -> None:
        reason = {
            BusyError: "busy",
            ContextError: "context",
            DeadlineError: "deadline",
            EngineLostError: "lost",
        }
        for watcher in self._watchers:
            watcher.refused(model, user, reason.get(type(error), "error"))

    def _ended(self, slot: Slot, running: Running, timer: asyncio.TimerHandle) -> None:
        timer.cancel()
        seconds = time.perf_counter() - running.began
        slot.seconds += 0.1 * (seconds - slot.seconds)
        self._leave(slot, running.job.user, running.job.keep_alive)
        for watcher in self._watchers:
            watcher.ended(running)

    def _leave(self, slot: Slot, user: str, keep_alive: float | None) -> None:
        slot.asked -= 1
        slot.used = time.monotonic()
        self._users[user] -= 1
        if not self._users[user]:
            del self._users[user]
        if keep_alive is not None:
            slot.keep_alive = keep_alive
        if not slot.asked:
            self._freed.set()
            self._set_timer(slot)

    def _set_timer(self, slot: Slot) -> None:
        if slot.engine is None:
            if not slot.asked and self._slots.get(slot.name) is slot:
                del self._slots[slot.name]
            return
        if slot.keep_alive < 0:
            slot.expires = None
            return
        slot.expires = time.time() + slot.keep_alive
        loop = asyncio.get_running_loop()
        slot.timer = loop.call_later(slot.keep_alive, self._expire, slot)

    def _expire(self, slot: Slot) -> None:
        self._spawn(self._unload_unused(slot))

    async def _unload_unused(self, slot: Slot) -> None:
        if not slot.asked:
            await self._unload(slot)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- loading and unloading -------------------------------------------------------------------

    async def _engine(self, slot: Slot, context: int | None) -> AnyEngine:
        engine = slot.serves(context)
        if engine is not None:
            return engine
        async with self._loading:
            engine = slot.serves(context)
            if engine is not None:
                return engine
            if slot.ready:
                assert slot.engine is not None
                if slot.asked > 1:
                    assert context is not None
                    raise BusyError(
                        f"{slot.name} is loaded for {slot.engine.context:,} tokens and in use; it "
                        f"cannot be loaded for {context:,} now.",
                        self._wait(slot),
                    )
                await self._unload(slot)
            elif slot.engine is not None:
                await self._close(slot)
            self._slots[slot.name] = slot
            return await self._start(slot, context)

    async def _start(self, slot: Slot, context: int | None) -> AnyEngine:
        s = self._settings
        resolved = slot.resolved = slot.newest
        engine = await asyncio.get_running_loop().run_in_executor(None, self._made, resolved)
        try:
            opened = await engine.start(
                EngineSpec(
                    path=resolved.path,
                    adapter=resolved.adapter,
                    defaults=resolved.defaults,
                    threads=s.threads,
                    kv_type=s.kv_type,
                    parallel=s.parallel,
                    queue=s.queue,
                    draft=s.draft,
                )
            )
            wanted = context or resolved.defaults.context or s.context
            size, tokens = room_for(slot.name, opened, wanted, s, self.max_memory)
            memory = opened.weights + int(tokens * opened.token_bytes) + PROCESS_BYTES
            await self._make_room(slot, memory)
            self._memory[engine] = memory  # counted while it loads
            await engine.load(size, tokens)
        except BaseException:
            engine.kill()
            await self._end(engine)
            raise
        self._memory[engine] = engine.memory + PROCESS_BYTES
        slot.engine = engine
        engine.on_lost = lambda: self._lost(slot, engine)
        return engine

    def _made(self, resolved: Resolved) -> AnyEngine:
        """The engine that suits a model here, not started yet; looks at the machine once."""
        asked = self._settings.engine
        if asked == "native":
            return EngineProcess()
        if self._machine is None:
            self._machine = machine(
                self._settings.folder if self._settings.folder.exists() else None
            )
        name = choose(self._machine, resolved.path, asked).engine
        if name == "native":
            return EngineProcess()
        if name == "onnxruntime-genai":
            return EngineProcess(engine=name)
        return ExternalEngine(name, self._settings.tensor_parallel)

    async def _make_room(self, slot: Slot, memory: int) -> None:
        """Unload others until ``memory`` bytes are free."""
        patience = time.monotonic() + _MEMORY_PATIENCE
        while True:
            others = [s for s in self._slots.values() if s is not slot]
            if sum(self._memory.values()) + memory <= self.max_memory:
                return
            idle = [s for s in others if not s.asked and s.engine is not None]
            if idle:
                await self._unload(min(idle, key=lambda s: s.used))
                continue
            self._freed.clear()
            try:
                async with asyncio.timeout_at(
                    asyncio.get_running_loop().time() + patience - time.monotonic()
                ):
                    await self._freed.wait()
            except TimeoutError:
                used = ", ".join(s.name for s in others if s.engine is not None) or "others"
                raise BusyError(
                    f"{slot.name} needs {memory / 1e6:,.0f} MB, and {used} are in use, of "
                    f"{self.max_memory / 1e6:,.0f} MB that models may take.",
                    10.0,
                ) from None

    async def _unload(self, slot: Slot) -> None:
        try:
            await self._close(slot)
        finally:
            # Meanwhile somebody may have come, been served, and left it loaded again.
            unused = not slot.asked and slot.engine is None
            if unused and self._slots.get(slot.name) is slot:
                del self._slots[slot.name]

    async def _close(self, slot: Slot) -> None:
        engine, slot.engine = slot.engine, None
        if slot.timer is not None:
            slot.timer.cancel()
            slot.timer = None
        if engine is not None:
            engine.on_lost = None
            await self._end(engine)

    async def _end(self, engine: AnyEngine) -> None:
        # In a task of its own: where a client has gone, every await of the request's task is
        # cancelled, and the memory would be counted for ever.
        await asyncio.shield(self._spawn(self._ending(engine)))

    async def _ending(self, engine: AnyEngine) -> None:
        try:
            await engine.close()
        finally:
            self._memory.pop(engine, None)
            self._freed.set()

    def _lost(self, slot: Slot, engine: AnyEngine) -> None:
        if slot.engine is engine:
            slot.engine = None
        self._spawn(self._ending(engine))

    # ---- the end ---------------------------------------------------------------------------------

    async def drain(self, seconds: float) -> None:
        """Take no more; wait until answers under way are done, at most so long; end everything."""
        self.draining = True
        ends = time.monotonic() + seconds
        while any(s.asked for s in self._slots.values()) and time.monotonic() < ends:
            self._freed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(0.5, max(0.0, ends - time.monotonic()))):
                    await self._freed.wait()
        await self.close()

    async def close(self) -> None:
        """End all processes."""
        self.draining = True
        for slot in list(self._slots.values()):
            await self._unload(slot)
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
