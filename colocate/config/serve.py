"""Every setting of `colocate serve`, loaded once and frozen. Flags, environment and YAML use these names.

Facts found at run time (units of the device, number of KV blocks) are not settings and live elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DeviceKind = Literal["auto", "cpu", "cuda", "emulated"]
Mode = Literal["colocated", "shared", "chunked"]
Discipline = Literal["fcfs", "sjf-window", "edf", "shortest-cache", "memory-aware-deadline"]
Admission = Literal["throttle", "greedy"]
Guard = Literal["hysteresis", "dwell", "decode-first", "fallback"]
GUARDS: tuple[Guard, ...] = ("hysteresis", "dwell", "decode-first", "fallback")
Dtype = Literal["auto", "float32", "bfloat16"]
LoadFormat = Literal["auto", "dummy"]
AttentionBackend = Literal["auto", "triton", "flashinfer"]
MemoryTransport = Literal["vmm", "ipc"]

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfigSection:
    model: str = "demo"  # a Hugging Face directory, a hub id, or "demo" for the embedded model
    served_model_name: tuple[str, ...] = ()  # empty: the name given as `model`
    revision: str | None = None
    dtype: Dtype = "auto"
    max_model_len: int | None = None  # None: the model's own
    load_format: LoadFormat = "auto"  # "dummy": random weights of the right shapes, for measurements
    attention_backend: AttentionBackend = "auto"  # CUDA
    attention_table: str | None = None  # CUDA: measured seconds that "auto" chooses by; None: triton
    enforce_eager: bool = False  # CUDA: no graphs
    deterministic: bool = False  # reductions independent of batch, plan and phase
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSection:
    device: DeviceKind = "auto"
    units: int | None = None  # cores to use; emulated: units of the device. None: all that this process may use
    profile: str | None = None  # a profile file: the device's time (emulated), and what the engine predicts from
    latency_profile: str | None = None  # what the engine predicts from, where it is not `profile`
    gpu: int = 0  # which GPU, by the driver's number
    arm: tuple[str, ...] = ()  # GPU: splits (by name) that can be switched to; empty: eight spread over the device
    single_process: bool = False  # both phases in two threads of one process: where MPS cannot be used
    faults: tuple[str, ...] = ()  # emulated: injected faults, e.g. "decode:exit@step=100"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySection:
    kv_memory: int | None = None  # bytes of the KV pool; None: 1 GiB (CPU), what gpu_memory_utilization leaves (GPU)
    gpu_memory_utilization: float = 0.9  # of the GPU's memory, for everything of this run
    graph_memory: int = 2 * GIB  # GPU: for the graphs of decode steps; beyond, large batches run eagerly
    memory_transport: MemoryTransport = "vmm"  # GPU: how workers get at weights and KV
    block_size: int = 16  # tokens per KV block


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerSection:
    mode: Mode = "colocated"
    plan: str = "elastic"  # the policy: "elastic", "slo", "on-demand", or "static:PLAN" (a bare plan name means static)
    plans: str | None = None  # a plan file: which plans the policy may choose from
    shadow: str | None = None  # a policy that only logs what it would do
    guards: tuple[Guard, ...] = GUARDS
    discipline: Discipline = "fcfs"
    admission: Admission = "greedy"
    prefix_caching: bool = True
    slo_class: tuple[str, ...] = ()  # "interactive: ttft 300 ms, tpot 50 ms"
    default_slo_class: str | None = None  # None: the first class, or no SLO where there is none
    max_slice_ms: float = 20.0  # a plan switch or an urgent prompt waits at most about this long for a prefill slice
    max_num_seqs: int = 64  # rows of the standing decode batch
    max_num_batched_tokens: int = 512  # tokens of one prefill forward
    max_queue: int = 256  # waiting requests; more are answered 429


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSection:
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: tuple[str, ...] = ()  # empty: no key needed
    admin_key: tuple[str, ...] = ()  # for /control; empty: the control calls are off
    max_body_bytes: int = 4 * 1024 * 1024
    header_timeout_s: float = 15.0  # a client that opens a connection and stalls
    stream_buffer_bytes: int = 1024 * 1024  # unread output of one client
    slow_client_timeout_s: float = 30.0  # then it is cut off
    keepalive_s: float = 10.0  # SSE comment while a prompt waits
    metrics_compat: tuple[Literal["vllm"], ...] = ()  # "vllm" adds vLLM's metric names
    drain_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorSection:
    start_timeout_s: float = 300.0  # for one process to become ready
    heartbeat_timeout_s: float = 3.0  # silence after which a process is declared dead
    progress_factor: float = 20.0  # a slice or step may take this many times its prediction ...
    progress_floor_s: float = 10.0  # ... but at least this, before its worker is declared hung
    max_restarts: int = 3  # per role within restart_window_s; then give up with exit code 1
    restart_window_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySection:
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = "auto"
    event_log: str | None = None  # directory; every event and command of the engine, for `colocate replay`


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    model: ModelConfigSection = field(default_factory=ModelConfigSection)
    device: DeviceSection = field(default_factory=DeviceSection)
    memory: MemorySection = field(default_factory=MemorySection)
    scheduler: SchedulerSection = field(default_factory=SchedulerSection)
    http: HttpSection = field(default_factory=HttpSection)
    supervisor: SupervisorSection = field(default_factory=SupervisorSection)
    telemetry: TelemetrySection = field(default_factory=TelemetrySection)
