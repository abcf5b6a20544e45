"""From settings to facts: everything about this run that is decided once, before the first process starts."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from colocate.config.serve import GIB, SchedulerSection, ServeConfig
from colocate.config.sizes import format_size
from colocate.config.slo import slo_classes
from colocate.core.latency import LatencyModel
from colocate.core.plan import PlanTable, build_plan_table
from colocate.core.policy.choose import DYNAMIC, choose_policy
from colocate.device.cpu.memory import available_bytes
from colocate.device.cpu.torch_facts import probe_torch
from colocate.device.resolve import DeviceFacts, resolve_device
from colocate.errors import ConfigError
from colocate.messages.spec import RuntimeFacts
from colocate.model.config import ModelConfig, load_model_config
from colocate.model.layout import KVLayout, WeightLayout
from colocate.runtime.core_settings import core_settings
from colocate.runtime.gpu_budget import GpuBudget, GpuNeeds, divide, num_lanes_of
from colocate.runtime.latency_source import engine_latency
from colocate.runtime.model_source import locate_model, model_label
from colocate.runtime.plan_source import PlanChoice, PlanSource

# What two workers, engine, frontend and keeper take beside weights and KV, mostly torch: measured on the demo model.
_PROCESSES_BYTES = 700 << 20
_LEN_STEP = 16


@dataclass(frozen=True, slots=True)
class Startup:
    """The outcome. `notes` are decisions the operator should see."""

    facts: RuntimeFacts
    plans: PlanTable
    weights_bytes: int
    kv_bytes: int
    notes: tuple[str, ...]
    budget: GpuBudget | None = None  # of a GPU's memory


@dataclass(frozen=True, slots=True)
class _Pool:
    """The KV pool of this run, and how a GPU is divided around it."""

    num_blocks: int
    bytes_per_block: int
    budget: GpuBudget | None = None

    @property
    def num_bytes(self) -> int:
        return self.num_blocks * self.bytes_per_block


def prepare(config: ServeConfig) -> Startup:
    """Find the model and the device, choose dtype and sizes. Raises ConfigError for whatever cannot work."""
    is_dummy = config.model.load_format == "dummy"
    model_dir = locate_model(config.model.model, config.model.revision, needs_weights=not is_dummy)
    model = load_model_config(model_dir)
    notes: list[str] = []
    if is_dummy:
        notes.append("the weights are random numbers (load_format dummy): times are real, texts are noise")
    device = resolve_device(config.device, notes)
    if config.model.deterministic and device.kind == "cuda":
        problem = "is not offered on a GPU: matrix products and split keys are summed by the size of batch and share"
        raise ConfigError("deterministic", problem, "drop --deterministic, or use --device cpu")
    plans = build_plan_table(device.total_units, device.unit_granularity, device.decode_shares)
    dtype = _choose_dtype(config.model.dtype, model, device, notes)
    weights_bytes = WeightLayout.of(model, dtype).nbytes
    pool = _size_pool(config, model, device, plans, dtype, weights_bytes)
    max_model_len = _choose_length(config, model, pool, notes)
    if device.kind == "cpu":
        _check_memory(weights_bytes, pool.num_bytes)
    if config.telemetry.event_log is not None:
        _check_event_log(Path(config.telemetry.event_log))
    choice = _read_plan_file(config, plans, device, notes)
    names = config.model.served_model_name
    label = model_label(config.model.model)
    facts = RuntimeFacts(
        device_kind=device.kind,
        device_name=device.name,
        total_units=device.total_units,
        unit_granularity=device.unit_granularity,
        unit_ids=device.unit_ids,
        model_name=names[0] if names else label,
        model_dir=str(model_dir),
        dtype=dtype,
        vocab_size=model.vocab_size,
        max_model_len=max_model_len,
        num_blocks=pool.num_blocks,
        block_size=config.memory.block_size,
        latency=engine_latency(config.device, device, model, label, dtype, notes),
        candidates=choice.candidates,
        best_static=choice.best_static,
        decode_shares=device.decode_shares,
        device_index=device.index,
        graph_bytes=0 if pool.budget is None else pool.budget.graph_bytes,
    )
    _check_policies(config, facts, plans)
    if facts.latency is not None and not facts.latency.is_measured and _predicts(config.scheduler, plans):
        notes.append("the engine predicts from a roofline prior, not from a measurement; `colocate profile` measures")
    return Startup(facts, plans, weights_bytes, pool.num_bytes, tuple(notes), pool.budget)


def _check_event_log(directory: Path) -> None:
    """Make the directory and write into it once: permission bits do not tell what a mount or a quota allows."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as probe:
            probe.write(b"\0")
    except OSError as error:
        problem = f"{directory} cannot hold an event log: {error.strerror}"
        raise ConfigError("event_log", problem, "give --event-log a directory that this user may write to") from None


def _read_plan_file(config: ServeConfig, table: PlanTable, device: DeviceFacts, notes: list[str]) -> PlanChoice:
    path = config.scheduler.plans
    if path is None:
        return PlanChoice()
    if config.scheduler.mode != "colocated":
        raise ConfigError("plans", f"mode {config.scheduler.mode!r} runs no partition", "drop --plans")
    source = PlanSource(Path(path), table, device.name, model_label(config.model.model))
    choice, file = source.read()
    if file.prediction == "roofline":
        notes.append(f"plans of {path} come from a roofline prior, not from a measurement: no verdict")
    return choice


def _check_policies(config: ServeConfig, facts: RuntimeFacts, table: PlanTable) -> None:
    """Resolve the policies as the engine will, before anything starts."""
    settings = core_settings(config, facts)
    model = None if facts.latency is None else LatencyModel(facts.latency)
    for option, word in (("plan", config.scheduler.plan), ("shadow", config.scheduler.shadow)):
        if word is not None:
            choose_policy(settings, word, table, model, option)


def _predicts(scheduler: SchedulerSection, plans: PlanTable) -> bool:
    """Whether a policy or a deadline of this run rests on predicted times."""
    if scheduler.mode != "colocated":
        return False
    is_dynamic = len(plans.plans) > 1 and (scheduler.plan in DYNAMIC or scheduler.shadow in DYNAMIC)
    return is_dynamic or any(each.promises_anything for each in slo_classes(scheduler))


def _choose_dtype(setting: str, model: ModelConfig, device: DeviceFacts, notes: list[str]) -> str:
    """`auto` is bfloat16 on a GPU, whatever the checkpoint holds: what serving engines do, float16 aside. On a CPU it
    keeps the checkpoint's bfloat16 only where that multiplies about as fast as float32."""
    dtype = model.resolve_dtype(setting)
    if setting != "auto":
        return dtype
    if device.kind == "cuda":
        if model.checkpoint_dtype != "bfloat16":
            notes.append(f"dtype bfloat16: the checkpoint is {model.checkpoint_dtype}; --dtype float32 is slower")
        return "bfloat16"
    if dtype != "bfloat16" or device.kind != "cpu":
        return dtype
    torch_facts = probe_torch()
    if torch_facts is None:
        return dtype
    ratio = torch_facts.gflops["bfloat16"] / torch_facts.gflops["float32"]
    chosen = "bfloat16" if ratio >= 0.9 else "float32"
    notes.append(f"dtype {chosen}: bfloat16 runs at {ratio:.2f} times the speed of float32 here, measured")
    return chosen


def _size_pool(
    config: ServeConfig, model: ModelConfig, device: DeviceFacts, plans: PlanTable, dtype: str, weights_bytes: int
) -> _Pool:
    """`--kv-memory`, or a default: 1 GiB of host memory, what is left of a GPU's."""
    memory, scheduler = config.memory, config.scheduler
    bytes_per_block = KVLayout(model, dtype, 1, memory.block_size).nbytes
    if device.kind != "cuda":
        num_bytes = GIB if memory.kv_memory is None else memory.kv_memory
        return _Pool(KVLayout.num_blocks_for(num_bytes, model, dtype, memory.block_size), bytes_per_block)
    needs = GpuNeeds(
        total_bytes=device.total_bytes,
        free_bytes=device.free_bytes,
        utilization=memory.gpu_memory_utilization,
        weights_bytes=weights_bytes,
        bytes_per_block=bytes_per_block,
        kv_memory=memory.kv_memory,
        graph_bytes=0 if config.model.enforce_eager else memory.graph_memory,
        num_lanes=num_lanes_of(plans, scheduler.mode),
        mode=scheduler.mode,
        single_process=config.device.single_process,
        model=model,
        dtype=dtype,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        max_num_seqs=scheduler.max_num_seqs,
        max_model_len=config.model.max_model_len or model.max_position_embeddings,
        block_size=memory.block_size,
        num_sms=device.total_units,
    )
    budget = divide(needs)
    return _Pool(budget.num_blocks, bytes_per_block, budget)


def _choose_length(config: ServeConfig, model: ModelConfig, pool: _Pool, notes: list[str]) -> int:
    """The longest prompt plus output: one request must fit into the pool by itself."""
    block_size = config.memory.block_size
    fits = pool.num_blocks * block_size
    own, wanted = model.max_position_embeddings, config.model.max_model_len
    is_computed = pool.budget is not None and config.memory.kv_memory is None
    key = "gpu_memory_utilization" if is_computed else "kv_memory"
    flag = "--" + key.replace("_", "-")
    if wanted is not None and wanted > own:
        raise ConfigError("max_model_len", f"{wanted} is over the model's own limit", f"at most {own}")
    if wanted is not None and wanted > fits:
        need = format_size(-(-wanted // block_size) * pool.bytes_per_block).replace(" ", "")
        problem = f"a request of max_model_len {wanted} tokens does not fit: the pool holds {fits}"
        more = f"raise {flag}: it needs {need} of KV" if is_computed else f"give {flag} {need} or more"
        raise ConfigError(key, problem, f"{more}, or lower --max-model-len")
    length = wanted or min(own, fits)
    if length < min(own, _LEN_STEP):
        raise ConfigError(key, f"the pool holds only {fits} tokens", f"give more {flag}")
    if wanted is None and fits < own:
        notes.append(f"max-model-len {length}: the KV pool holds no more (the model could do {own}); raise {flag}")
    return length


def _check_memory(weights_bytes: int, kv_bytes: int) -> None:
    available = available_bytes()
    if weights_bytes + kv_bytes + _PROCESSES_BYTES <= available:
        return
    left = available - weights_bytes - _PROCESSES_BYTES
    parts = (
        f"weights {format_size(weights_bytes)} + KV {format_size(kv_bytes)} + processes {format_size(_PROCESSES_BYTES)}"
    )
    problem = f"{parts} do not fit into {format_size(available)} of available memory"
    if left <= 0:
        raise ConfigError("model", problem, "free memory, use a smaller model, or --dtype bfloat16")
    raise ConfigError("kv_memory", problem, f"give --kv-memory {left >> 20}MiB or less, or free memory")
