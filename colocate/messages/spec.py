"""What the supervisor hands a child at birth (MessagePack on its standard input)."""

from __future__ import annotations

from msgspec import Struct

from colocate.config.profile import DeviceProfile
from colocate.config.serve import ServeConfig
from colocate.types import Role


class RuntimeFacts(Struct, frozen=True):
    """Facts found at start, the same for every process of one run."""

    device_kind: str  # cpu, cuda, emulated
    device_name: str
    total_units: int
    unit_granularity: int
    unit_ids: tuple[int, ...]  # operating-system numbers of the units: CPU core ids, in plan order
    model_name: str  # what /v1/models lists first
    model_dir: str  # where config.json, tokenizer and templates are
    dtype: str  # float32 or bfloat16: of weights and KV
    vocab_size: int
    max_model_len: int
    num_blocks: int
    block_size: int
    latency: DeviceProfile | None = None  # what the engine predicts from, without samples; None: it cannot
    candidates: tuple[str, ...] = ()  # of the plan file as it was at start; empty: every plan of the device
    best_static: str = ""  # of the plan file
    decode_shares: tuple[int, ...] = ()  # of the splits that are armed; empty: every split of the device
    device_index: int = 0  # CUDA's number of the GPU
    graph_bytes: int = 0  # CUDA: what the graphs of decode may take of the device; 0: none are captured


class OneShot(Struct, frozen=True):
    """The one request of `colocate generate`."""

    text: str
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    raw: bool = False  # feed the text as it is, without the chat template


class ProfilingJob(Struct, frozen=True):
    """What `colocate profile` measures, and where every visit of a point is appended to."""

    journal: str  # path; its header is written, whatever is in it counts as done
    budget_s: float  # of measuring, what the journal has spent included
    num_states: int  # per setup
    visit_s: float  # at a state before the next one's turn
    seed: int = 0  # of the states and of the order of visits
    temperature: float = 0.0  # of the draws; 0 is greedy


class ProcessSpec(Struct, frozen=True):
    """Everything one child needs. Descriptors are numbers in the child (inherited)."""

    role: Role
    incarnation: int  # of this process
    epoch: int  # of the engine
    run_id: str  # random, unique per run: prefix of every abstract socket address
    config: ServeConfig
    facts: RuntimeFacts
    control_fd: int  # SOCK_SEQPACKET to the supervisor
    board_fd: int  # memfd of the board
    bell_fds: tuple[int, ...]  # eventfds that wake the workers, in the order of config.roles.ANY_WORKER
    engine_address: str = ""  # where this process connects (worker, frontend) or binds for the frontend (engine)
    keeper_address: str = ""  # abstract Unix socket of the keeper
    listen_fd: int = -1  # frontend: the listening TCP socket, bound by the supervisor
    prompt: OneShot | None = None  # frontend: `colocate generate`, no HTTP
    profiling: ProfilingJob | None = None  # engine: `colocate profile`, no scheduling
