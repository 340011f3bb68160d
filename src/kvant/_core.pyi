"""Types of the native core; see native/bind.cc."""

import numpy as np
import numpy.typing as npt

_U8 = npt.NDArray[np.uint8]
_F32 = npt.NDArray[np.float32]

def quantize(
    from_type: int, to_type: int, data: _U8, out: _U8, columns: int, importance: _F32 | None
) -> tuple[int, int, float] | None: ...
def dequantize(type: int, data: _U8, out: _F32) -> None: ...
def fit(type: int, x: _F32, importance: _F32 | None, scales: _U8) -> None: ...
def encode(type: int, x: _F32, scales: _U8, codes: _U8) -> None: ...
def encode_weighted(type: int, x: _F32, importance: _F32, scales: _U8, codes: _U8) -> None: ...
def encode_groups(
    type: int, x: _F32, importance: _F32 | None, scales: _F32, low: _U8, codes: _U8
) -> None: ...
def grid_points(type: int) -> list[int]: ...
def decode(type: int, codes: _U8, scales: _U8, y: _F32) -> None: ...
def layout(type: int, codes: _U8, scales: _U8, out: _U8) -> None: ...
def unlayout(type: int, data: _U8, codes: _U8, scales: _U8) -> None: ...
def start_writing(fd: int) -> bool: ...
def carry(
    type: int,
    count: int,
    even: bool,
    w: _F32,
    start: int,
    scales: _U8,
    factor: _F32,
    inverse: _F32,
    codes: _U8,
    error: _F32,
    threads: int,
) -> None: ...
def descend(
    type: int,
    count: int,
    even: bool,
    q: _F32,
    r: _F32,
    start: int,
    scales: _U8,
    moments: _F32,
    inverse: _F32,
    codes: _U8,
    change: _F32,
    threads: int,
) -> None: ...
def carry_group(
    bits: int,
    base: _F32,
    step: _F32,
    table: _F32 | None,
    w: _F32,
    start: int,
    factor: _F32,
    inverse: _F32,
    codes: _U8,
    error: _F32,
    threads: int,
) -> None: ...
def descend_group(
    bits: int,
    base: _F32,
    step: _F32,
    table: _F32 | None,
    q: _F32,
    r: _F32,
    start: int,
    moments: _F32,
    inverse: _F32,
    codes: _U8,
    change: _F32,
    threads: int,
) -> None: ...
def group_range(x: _F32, lo: _F32, hi: _F32) -> None: ...
def group_search(
    bits: int, zero: int, scale: int, x: _F32, w: _F32 | None, widths: _F32, d: _F32, z: _F32
) -> None: ...
def group_encode(bits: int, zero: int, x: _F32, d: _F32, z: _F32, codes: _U8) -> None: ...
def pack_bits(codes: _U8, bits: int, out: _U8) -> None: ...
def walk_texts(data: bytes, start: int, most: int) -> tuple[int, int, bool]: ...
def decode_texts(data: bytes, count: int) -> list[str]: ...
def cpu_features() -> list[str]: ...
def isas() -> list[str]: ...
def current_isa() -> str: ...
def select_isa(name: str) -> bool: ...

# For tests and benchmarks; see native/bind_rows.cc.
def rows_rms_norm(x: _F32, w: _F32, y: _F32, groups: int, eps: float) -> None: ...
def rows_layer_norm(x: _F32, w: _F32, b: _F32 | None, y: _F32, eps: float) -> None: ...
def rows_geglu(gate: _F32, up: _F32, y: _F32) -> None: ...
def rows_gelu(x: _F32, y: _F32, tanh: bool) -> None: ...
def rows_scale(x: _F32, factor: float, y: _F32) -> None: ...
def rows_soft_cap(x: _F32, cap: float, y: _F32) -> None: ...
def rows_rope(x: _F32, cos: _F32, sin: _F32) -> None: ...
def rows_swiglu(gate: _F32, up: _F32, y: _F32) -> None: ...
def rows_add(x: _F32, y: _F32) -> None: ...
def rows_log_sum_exp(x: _F32) -> tuple[float, float]: ...
def rows_kv_bytes(kv_heads: int, head_dim: int, type: int) -> tuple[int, int]: ...
def rows_kv_write(
    kv_heads: int,
    head_dim: int,
    type: int,
    cache: _U8,
    table: npt.NDArray[np.int32],
    first: int,
    k: _F32,
    v: _F32,
    head_begin: int,
    head_end: int,
) -> None: ...
def rows_attend(
    kv_heads: int,
    head_dim: int,
    type: int,
    cache: _U8,
    table: npt.NDArray[np.int32],
    first: int,
    q: _F32,
    out: _F32,
    scale: float,
    window: int,
    softcap: float,
    split: bool,
    repeats: int,
) -> float: ...
def rows_time(name: str, n: int, repeats: int) -> float: ...

# ---- the engine; see native/bind_engine.cc ----

_I32 = npt.NDArray[np.int32]
_I64 = npt.NDArray[np.int64]

KV_BLOCK: int

def has_panels(type: int) -> bool: ...
def kv_block_bytes(kv_heads: int, head_dim: int, type: int) -> int: ...

class FileRows:
    def __init__(
        self, parts: list[tuple[int, int]], type: int, rows: int, columns: int
    ) -> None: ...

class Weight:
    def __init__(
        self, source: FileRows, order: list[int], resident: bool, matrices: int = 1
    ) -> None: ...
    @staticmethod
    def of_array(type: int, columns: int, data: _U8, matrices: int = 1) -> Weight: ...
    @property
    def matrices(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def type(self) -> int: ...
    @property
    def memory(self) -> int: ...

class Plan:
    def __init__(self, threads: int, most_tokens: int) -> None: ...
    def load(self, weights: list[Weight]) -> int: ...
    def add_weight(self, weight: Weight) -> int: ...
    def set_weight(self, id: int, weight: Weight) -> None: ...
    def weight(self, id: int) -> Weight: ...
    def add_vector(self, values: list[float]) -> int: ...
    def set_vector(self, id: int, values: list[float]) -> None: ...
    def add_table(self, rows: FileRows) -> int: ...
    def add_frequencies(self, values: list[float], magnitude: float) -> int: ...
    def add_buffer(self, width: int) -> int: ...
    def add_view(self, buffer: int, start: int, width: int) -> int: ...
    def add_state(self, kv_heads: int, head_dim: int, type: int) -> int: ...
    def embed(self, table: int, dst: int) -> int: ...
    def positions(self, table: int, dst: int, fixed: int = -1) -> int: ...
    def rope(self, layer: int, buffer: int, table: int, heads: int, head_dim: int) -> int: ...
    def add(self, layer: int, left: int, right: int, dst: int) -> int: ...
    def map(
        self,
        layer: int,
        what: int,
        src: int,
        src2: int,
        dst: int,
        vector: int,
        vector2: int,
        number: float,
        groups: int,
    ) -> int: ...
    def linear(
        self,
        layer: int,
        before: int,
        src: int,
        src2: int,
        vector: int,
        vector2: int,
        number: float,
        outputs: list[tuple[int, int, int, bool]],
    ) -> int: ...
    def head(self, src: int, weight: int, bias: int, scale: float, soft_cap: float) -> None: ...
    def attention(
        self,
        layer: int,
        q: int,
        k: int,
        v: int,
        dst: int,
        state: int,
        heads: int,
        scale: float,
        window: int,
        softcap: float,
        q_norm: int,
        q_eps: float,
        k_norm: int,
        k_eps: float,
        q_rope: int,
        k_rope: int,
        causal: bool,
    ) -> int: ...
    def moe(
        self,
        layer: int,
        src: int,
        scores: int,
        dst: int,
        add: bool,
        gate: int,
        up: int,
        down: int,
        used: int,
        normalise: bool,
    ) -> int: ...
    def finish(self, kv_blocks: int, stream: int, result: int, layers: int) -> None: ...
    def op_columns(self, op: int) -> int: ...
    def step(
        self,
        tokens: _I32,
        entries: _I64,
        tables: _I32,
        rows: _I32,
        first_layer: int,
        last_layer: int,
        stream_in: _F32 | None,
        stream_out: _F32 | None,
        result: _F32 | None,
        logits: _F32 | None,
        captures: list[tuple[int, _F32]],
        routings: list[tuple[int, _I32, _F32 | None, _F32 | None]] = ...,
    ) -> tuple[bool, int]: ...
    def copy_blocks(self, pairs: list[tuple[int, int]]) -> None: ...
    def run_head(self, hidden: _F32, logits: _F32) -> tuple[bool, int]: ...
    @property
    def threads(self) -> int: ...
    @property
    def most_tokens(self) -> int: ...
    @property
    def kv_bytes(self) -> int: ...
    @property
    def weight_bytes(self) -> int: ...
    @property
    def scratch_bytes(self) -> int: ...

# The machine; see native/bind_limits.cc.
def read_bandwidth(data: _U8, threads: int, seconds: float) -> float: ...
def arithmetic_peak(kind: str, threads: int, seconds: float) -> float: ...
def score(
    logits: list[_F32],
    targets: npt.NDArray[np.int32],
    nll: npt.NDArray[np.float64],
    kld: npt.NDArray[np.float64],
    same: _U8,
    threads: int,
) -> tuple[int, int] | None: ...

# ---- sampling; see native/bind_sampler.cc ----

class Draw:
    token: int
    fault: int
    logprob: float
    top: list[tuple[int, float]]

class Sampler:
    position: int
    def __init__(
        self,
        vocab: int,
        *,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repetition: float,
        frequency: float,
        presence: float,
        seed: int,
        logprobs: int,
        bias: list[tuple[int, float]],
    ) -> None: ...
    def prompt(self, tokens: npt.NDArray[np.int32]) -> None: ...
    def seek(self, position: int) -> None: ...
    def accept(self, tokens: npt.NDArray[np.int32]) -> None: ...

def sample(
    samplers: list[Sampler],
    logits: _F32,
    guesses: npt.NDArray[np.int32],
    masks: npt.NDArray[np.uint32] | None = None,
    masked: npt.NDArray[np.int32] | None = None,
    plan: Plan | None = None,
) -> list[list[Draw]]: ...
