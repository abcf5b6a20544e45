"""How a GPU's memory is divided before anything of it is taken. Pure arithmetic over sizes in bytes.

    total x gpu_memory_utilization
        = weights + KV pool                       one copy each, in the keeper's segments
        + per worker: context, partitions, activations at the largest shapes
        + graphs of decode steps (bounded by --graph-memory)
        + what the device needs once (MPS server)
        + left

The KV pool is what the others leave, or what `--kv-memory` asks for. The constants are assumptions until the ledger
(`memory_ledger.py`) has held them against a measurement; it warns where one was too small.
"""

from __future__ import annotations

from dataclasses import dataclass

from colocate.config.roles import processes_of, workers_in
from colocate.config.serve import Mode
from colocate.config.sizes import format_size
from colocate.core.plan import PlanTable
from colocate.errors import ConfigError
from colocate.model.config import DTYPE_BYTES, ModelConfig
from colocate.model.cuda.activations import activation_bytes, hidden_bytes, rotary_bytes
from colocate.types import Role

MIB = 1 << 20
GRANULARITY_BYTES = 2 * MIB  # of cuMemCreate on every GPU this runs on; the keeper asks the driver again

# A context of torch with its modules and the kernels of cuBLAS loaded lazily; Hopper without MPS is usually said to
# take 500 to 600 MiB. Unproven here, under MPS in particular.
CONTEXT_BYTES = 700 * MIB
# Each green context has launch resources of its own. Unproven.
GREEN_CONTEXT_BYTES = 48 * MIB
# torch's cuBLAS workspace on sm_90 is 32 MiB per handle and stream, and cuBLASLt has one of its own.
CUBLAS_BYTES_PER_LANE = 64 * MIB
# The MPS server's own context. Unproven.
MPS_SERVER_BYTES = 128 * MIB
# What torch's allocator holds beyond what is asked of it: it takes blocks of 2 or 20 MiB.
_ALLOCATOR_SLACK = 1.05
_ALLOCATOR_BYTES = 64 * MIB
# What FlashInfer asks for where it runs prompts.
_PROMPT_KERNEL_BYTES = 128 * MIB
# Parts of rows that split-KV decode has under way at once, for each SM, at most.
_PARTS_PER_SM = 8
# Copies of the rows' block tables: the standing batch, or the forwards of prompts that are on their way.
_BLOCK_TABLES = 4


@dataclass(frozen=True, slots=True)
class Line:
    """One planned use of the device."""

    name: str
    num_bytes: int
    owner: Role | None = None  # the process; None: not a worker's


@dataclass(frozen=True, slots=True)
class GpuBudget:
    """`lines` add up to at most `usable_bytes`. `kv_bytes` is whole blocks, before rounding to the granularity."""

    total_bytes: int
    usable_bytes: int
    lines: tuple[Line, ...]
    kv_bytes: int
    num_blocks: int
    graph_bytes: int
    used_before_bytes: int | None = None  # by others, when the run started; None: not known

    @property
    def planned_bytes(self) -> int:
        return sum(line.num_bytes for line in self.lines)

    @property
    def left_bytes(self) -> int:
        """Of what this run may use."""
        return self.usable_bytes - self.planned_bytes

    def of(self, owner: Role) -> int:
        return sum(line.num_bytes for line in self.lines if line.owner is owner)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuNeeds:
    """What the division follows from. `num_lanes` is the number of green contexts a worker makes; `kv_memory` None:
    all that is left."""

    total_bytes: int
    free_bytes: int  # before this run; 0: not known
    utilization: float
    weights_bytes: int
    bytes_per_block: int
    kv_memory: int | None
    graph_bytes: int
    num_lanes: int
    mode: Mode
    single_process: bool
    model: ModelConfig
    dtype: str
    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int  # the model's own, before the pool has cut it
    block_size: int
    num_sms: int


def divide(needs: GpuNeeds) -> GpuBudget:
    """Raises ConfigError naming the flag that makes it fit, with numbers."""
    usable = int(needs.total_bytes * needs.utilization)
    _refuse_foreign(needs, usable)
    fixed = [Line("weights", _round_up(needs.weights_bytes)), *_worker_lines(needs)]
    left = usable - sum(line.num_bytes for line in fixed)
    pool_bytes = _pool_bytes(needs, left, usable)
    num_blocks = pool_bytes // needs.bytes_per_block
    kv_bytes = num_blocks * needs.bytes_per_block
    lines = (fixed[0], Line("KV pool", _round_up(kv_bytes)), *fixed[1:])
    before = needs.total_bytes - needs.free_bytes if needs.free_bytes else None
    return GpuBudget(needs.total_bytes, usable, lines, kv_bytes, num_blocks, needs.graph_bytes, before)


def _refuse_foreign(needs: GpuNeeds, usable: int) -> None:
    """What other programs hold cannot be planned with."""
    if not needs.free_bytes or usable <= needs.free_bytes:
        return
    share = int(100 * needs.free_bytes / needs.total_bytes) / 100
    problem = (
        f"{needs.utilization:g} of the GPU's {format_size(needs.total_bytes)} is {format_size(usable)}, but only "
        f"{format_size(needs.free_bytes)} are free"
    )
    remedy = f"end other programs on the GPU, or give --gpu-memory-utilization {share:g}"
    raise ConfigError("gpu_memory_utilization", problem, remedy)


def _pool_bytes(needs: GpuNeeds, left: int, usable: int) -> int:
    """Bytes for the pool, within what is left, a multiple of the granularity unless `--kv-memory` names them."""
    most = max(0, left) // GRANULARITY_BYTES * GRANULARITY_BYTES
    if needs.kv_memory is None:
        if most >= needs.bytes_per_block:
            return most
        problem = f"{_beside(needs, left, usable)}: no room for one KV block of {format_size(needs.bytes_per_block)}"
        raise ConfigError("gpu_memory_utilization", problem, _more(needs))
    if needs.kv_memory < needs.bytes_per_block:
        problem = f"{needs.kv_memory} bytes do not hold one KV block"
        raise ConfigError("kv_memory", problem, f"give at least {needs.bytes_per_block}")
    if needs.kv_memory > most:
        problem = f"{format_size(needs.kv_memory)} do not fit: {_beside(needs, left, usable)}"
        remedy = f"give --kv-memory {most // MIB}MiB or less, or drop it" if most >= needs.bytes_per_block else ""
        raise ConfigError("kv_memory", problem, remedy or _more(needs))
    return needs.kv_memory


def _beside(needs: GpuNeeds, left: int, usable: int) -> str:
    others = usable - left - _round_up(needs.weights_bytes)
    return (
        f"of {format_size(usable)}, weights take {format_size(needs.weights_bytes)} and workers and graphs "
        f"{format_size(others)}, so {format_size(max(0, left))} are left"
    )


def _more(needs: GpuNeeds) -> str:
    words = []
    if needs.utilization < 0.95:
        words.append("raise --gpu-memory-utilization")
    if needs.graph_bytes:
        words.append("lower --graph-memory")
    return ", ".join([*words, "lower --max-num-batched-tokens or --max-num-seqs, or use a smaller model"])


def _worker_lines(needs: GpuNeeds) -> list[Line]:
    """In single-process mode both workers share a context; each has its own partitions and activations."""
    processes = processes_of(needs.mode, needs.single_process)
    lines: list[Line] = []
    for process in processes:
        lines.append(Line(f"{process.value}: context", CONTEXT_BYTES, process))
        for worker in workers_in(process):
            lanes = needs.num_lanes * (GREEN_CONTEXT_BYTES + CUBLAS_BYTES_PER_LANE)
            lines.append(Line(f"{worker.value}: {needs.num_lanes} partition(s)", lanes, process))
            lines.append(Line(f"{worker.value}: activations", worker_bytes(worker, needs), process))
            if worker is not Role.PREFILL and needs.graph_bytes:
                lines.append(Line(f"{worker.value}: graphs", needs.graph_bytes, process))
    if len(processes) > 1:
        lines.append(Line("MPS server", MPS_SERVER_BYTES))
    return lines


def worker_bytes(worker: Role, needs: GpuNeeds) -> int:
    """Everything one worker allocates for its largest forward: the model's arena, the rotation table, hidden states of
    prompts (one forward under way, one set aside), parts of split-KV decode, block tables, logits before they are
    float32."""
    model, dtype, rows = needs.model, needs.dtype, needs.max_num_seqs + 1
    tokens = rows if worker is Role.DECODE else max(rows, needs.max_num_batched_tokens)
    arena = activation_bytes(model, dtype, tokens, rows) + rotary_bytes(model, needs.max_model_len)
    hidden = 0 if worker is Role.DECODE else 2 * hidden_bytes(model, dtype, tokens) + _PROMPT_KERNEL_BYTES
    parts = (_PARTS_PER_SM * needs.num_sms + rows) * (model.q_size + model.num_heads + 8) * 4
    tables = _BLOCK_TABLES * rows * (needs.max_model_len // needs.block_size + 64) * 4
    logits = rows * model.vocab_size * DTYPE_BYTES[dtype]
    return round((arena + hidden + parts + tables + logits) * _ALLOCATOR_SLACK) + _ALLOCATOR_BYTES


def num_lanes_of(plans: PlanTable, mode: Mode) -> int:
    """Green contexts of one worker: one per share that a plan can give it."""
    if mode != "colocated":
        return 1
    return len({plan.decode_units for plan in plans.plans if plan.decode_units})


def _round_up(num_bytes: int) -> int:
    return -(-num_bytes // GRANULARITY_BYTES) * GRANULARITY_BYTES
