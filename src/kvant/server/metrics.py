"""Figures for Prometheus, under vLLM's names where vLLM has them.

Written as text here: the format is a page long, and what is counted is known beforehand.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kvant.server.backend import ServingBackend
from kvant.server.running import Running, Watcher

__all__ = ["Counter", "Histogram", "Metrics"]

Labels = tuple[tuple[str, str], ...]

_TTFT = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0),
)
_TOKEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0),
)
_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class Counter:
    """Only goes up."""

    kind = "counter"

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text
        self._values: dict[Labels, float] = {}

    def add(self, amount: float = 1, **labels: str) -> None:
        """Count."""
        key = tuple(labels.items())
        self._values[key] = self._values.get(key, 0) + amount

    def lines(self) -> Iterator[str]:
        """The samples."""
        for labels, value in self._values.items():
            yield f"{self.name}{_labels(labels)} {value:.17g}"


class Histogram:
    """How values are distributed over buckets."""

    kind = "histogram"

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self.name, self.text, self._bounds = name, text, tuple(bounds)
        self._values: dict[Labels, tuple[list[int], list[float]]] = {}

    def observe(self, value: float, **labels: str) -> None:
        """Count a value."""
        key = tuple(labels.items())
        if key not in self._values:
            self._values[key] = ([0] * (len(self._bounds) + 1), [0.0])
        counts, total = self._values[key]
        counts[bisect_left(self._bounds, value)] += 1
        total[0] += value

    def lines(self) -> Iterator[str]:
        """The samples."""
        for labels, (counts, (total,)) in self._values.items():
            below = 0
            for bound, count in zip((*self._bounds, float("inf")), counts, strict=True):
                below += count
                le = "+Inf" if bound == float("inf") else f"{float(bound)}"
                yield f"{self.name}_bucket{_labels((*labels, ('le', le)))} {below}"
            yield f"{self.name}_sum{_labels(labels)} {total:.17g}"
            yield f"{self.name}_count{_labels(labels)} {below}"


class Metrics(Watcher):
    """Counts what a backend and the HTTP side do."""

    def __init__(self) -> None:
        c, h = Counter, Histogram
        self.prompt = c("vllm:prompt_tokens_total", "Tokens of prompts that were read.")
        self.written = c("vllm:generation_tokens_total", "Tokens that were written.")
        self.done = c("vllm:request_success_total", "Answers that were finished, by reason.")
        self.failed = c("kvant:request_failure_total", "Answers that were not, by reason.")
        self.refused_total = c("kvant:request_refused_total", "Requests not admitted, by reason.")
        self.http = c("kvant:http_requests_total", "HTTP requests by route and status.")
        self.first = h(
            "vllm:time_to_first_token_seconds", "From admission to the first token.", _TTFT
        )
        self.between = h(
            "vllm:inter_token_latency_seconds", "Mean time between an answer's tokens.", _TOKEN
        )
        self.per_token = h(
            "vllm:request_time_per_output_token_seconds", "The same, by its older name.", _TOKEN
        )
        self.whole = h("vllm:e2e_request_latency_seconds", "From admission to the end.", _REQUEST)
        self.queued = h("vllm:request_queue_time_seconds", "Time in the queue.", _REQUEST)
        self.reading = h("vllm:request_prefill_time_seconds", "Reading the prompt.", _REQUEST)
        self.writing = h("vllm:request_decode_time_seconds", "Writing the answer.", _REQUEST)
        self.prompt_size = h("vllm:request_prompt_tokens", "Tokens of a prompt.", _COUNTS)
        self.answer_size = h("vllm:request_generation_tokens", "Tokens of an answer.", _COUNTS)
        self._written = (
            *(self.prompt, self.written, self.done, self.failed, self.refused_total, self.http),
            *(self.first, self.between, self.per_token, self.whole),
            *(self.queued, self.reading, self.writing, self.prompt_size, self.answer_size),
        )

    # ---- what is heard ---------------------------------------------------------------------------

    def refused(self, model: str, user: str, reason: str) -> None:
        """A request was not admitted."""
        self.refused_total.add(model_name=model, reason=reason)

    def embedded(self, model: str, user: str, tokens: int) -> None:
        """Vectors were made."""
        self.prompt.add(tokens, model_name=model)
        self.done.add(model_name=model, finished_reason="stop")

    def ended(self, running: Running) -> None:
        """An answer has ended."""
        model, t = running.model, running.timings
        outcome = running.outcome or "error"
        if outcome in ("stop", "length"):
            self.done.add(model_name=model, finished_reason=outcome)
        elif outcome == "cancelled":
            self.done.add(model_name=model, finished_reason="abort")
        else:
            self.failed.add(model_name=model, reason=outcome)
        self.prompt.add(running.prompt_tokens, model_name=model)
        self.written.add(running.completion_tokens, model_name=model)
        if running.first_token_seconds is None or outcome not in ("stop", "length"):
            return
        count = running.completion_tokens
        self.first.observe(running.first_token_seconds, model_name=model)
        if count > 1:
            each = t.generation / (count - 1)
            self.between.observe(each, model_name=model)
            self.per_token.observe(each, model_name=model)
        self.whole.observe(running.first_token_seconds + t.generation, model_name=model)
        self.queued.observe(t.queue, model_name=model)
        self.reading.observe(t.prompt, model_name=model)
        self.writing.observe(t.generation, model_name=model)
        self.prompt_size.observe(running.prompt_tokens, model_name=model)
        self.answer_size.observe(count, model_name=model)

    def tokens(self, stats: Mapping[str, Mapping[str, float]]) -> float:
        """Tokens written so far, those of answers under way too where engines tell."""
        return sum(s.get("written_tokens", 0.0) for s in stats.values())

    # ---- what is shown ---------------------------------------------------------------------------

    def text(self, backend: ServingBackend) -> str:
        """Everything, in Prometheus's text format 0.0.4."""
        out: list[str] = []
        for metric in self._written:
            out += [f"# HELP {metric.name} {metric.text}", f"# TYPE {metric.name} {metric.kind}"]
            out += metric.lines()
        for name, kind, text, values in self._now(backend):
            out += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            out += [f"{name}{_labels(labels)} {value:.17g}" for labels, value in values.items()]
        return "\n".join(out) + "\n"

    def _now(
        self, backend: ServingBackend
    ) -> Iterator[tuple[str, str, str, Mapping[Labels, float]]]:
        loaded, stats = backend.loaded(), backend.stats()

        def of(key: str) -> dict[Labels, float]:
            return {(("model_name", n),): s[key] for n, s in stats.items() if key in s}

        def each(field: str) -> dict[Labels, float]:
            return {(("model_name", m.name),): float(getattr(m, field)) for m in loaded}

        yield "vllm:num_requests_running", "gauge", "Requests that run.", each("running")
        yield "vllm:num_requests_waiting", "gauge", "Requests that wait.", each("waiting")
        usage = of("kv_usage")
        yield "vllm:kv_cache_usage_perc", "gauge", "Share of the cache in use, 0 to 1.", usage
        asked, hits = of("prefix_queries"), of("prefix_hits")
        yield "vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up.", asked
        yield "vllm:prefix_cache_hits_total", "counter", "Prompt tokens found cached.", hits
        text = "Requests that made room for others."
        yield "vllm:num_preemptions_total", "counter", text, of("preemptions")
        drafts = of("draft_tokens")
        yield "vllm:spec_decode_num_draft_tokens_total", "counter", "Tokens guessed.", drafts
        accepted = of("accepted_tokens")
        text = "Guessed tokens that were right."
        yield "vllm:spec_decode_num_accepted_tokens_total", "counter", text, accepted
        yield "kvant:model_memory_bytes", "gauge", "Memory of a loaded model.", each("memory")
        yield "process_resident_memory_bytes", "gauge", "Of the server's process.", {(): _rss()}
        yield "process_open_fds", "gauge", "Of the server's process.", {(): _descriptors()}


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escape(value)}"' for key, value in labels) + "}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _rss() -> float:
    try:
        return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0.0


def _descriptors() -> float:
    try:
        return float(sum(1 for _ in Path("/proc/self/fd").iterdir()))
    except OSError:
        return 0.0
