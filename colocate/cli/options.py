"""Command-line options made from the settings: one option per key, so that flags and keys cannot drift apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from colocate.config.settings import SETTINGS, Setting

MODEL_PANEL = "Model"
DEVICE_PANEL = "Device and partition"
MEMORY_PANEL = "Memory and scheduling"
SLO_PANEL = "Promises and the controller"
HTTP_PANEL = "HTTP"
RUNTIME_PANEL = "Supervision"
LOG_PANEL = "Logs"
SWEEP_PANEL = "Arms, rates and seeds"  # of `colocate sweep` alone

# name -> (panel, metavar, help). Order is the order in `--help`.
HELP: dict[str, tuple[str, str, str]] = {
    "served_model_name": (MODEL_PANEL, "NAME", "Name clients use; may be repeated. Default: the model's own name."),
    "revision": (MODEL_PANEL, "REV", "Branch, tag or commit of a hub model."),
    "dtype": (
        MODEL_PANEL,
        "TYPE",
        "Weights and KV: float32, bfloat16, or auto: the checkpoint's own if it is fast here.",
    ),
    "max_model_len": (MODEL_PANEL, "N", "Longest prompt plus output, in tokens. Default: the model's own limit."),
    "load_format": (
        MODEL_PANEL,
        "NAME",
        "auto reads the checkpoint; dummy draws random weights of the right shapes, for measurements.",
    ),
    "attention_backend": (
        MODEL_PANEL,
        "NAME",
        "GPU: auto (from --attention-table, else triton), triton, or flashinfer (prefill only).",
    ),
    "attention_table": (
        MODEL_PANEL,
        "FILE",
        "GPU: what benchmarks/gpu_suite.py measured of attention kernels here, for auto to choose by.",
    ),
    "enforce_eager": (MODEL_PANEL, "", "GPU: launch every kernel of a decode step by itself instead of one graph."),
    "deterministic": (MODEL_PANEL, "", "CPU: same tokens whatever the batch, plan or worker; somewhat slower."),
    "seed": (
        MODEL_PANEL,
        "N",
        "Emulated device: shifts the seed of its noise. colocate profile also draws by it which states to measure and "
        "which to hold out.",
    ),
    "device": (DEVICE_PANEL, "KIND", "auto, cpu, cuda or emulated."),
    "units": (DEVICE_PANEL, "N", "Cores to use (emulated: units of the device). Default: all that are usable."),
    "plan": (
        DEVICE_PANEL,
        "PLAN",
        "The policy: elastic, elastic:SPLIT to start from that split, slo, on-demand, static:PLAN, or the name of a "
        "plan such as p1d1 or shared.",
    ),
    "mode": (
        DEVICE_PANEL,
        "MODE",
        "colocated (each phase on its own units), shared (no partition) or chunked (one worker runs chunks of prompts "
        "in the same forward as decode); the last two are baselines.",
    ),
    "profile": (
        DEVICE_PANEL,
        "FILE",
        "Device profile: what the engine predicts from; on the emulated device also its time. See colocate profile.",
    ),
    "latency_profile": (DEVICE_PANEL, "FILE", "Emulated device: predict from another profile than the device's own."),
    "gpu": (DEVICE_PANEL, "N", "Which GPU, by the driver's number."),
    "arm": (
        DEVICE_PANEL,
        "PLAN",
        "GPU: a split to prepare at start, e.g. p92d40; may be repeated. Only prepared splits can be switched to. "
        "Default: those of the plan file, or eight spread over the device.",
    ),
    "single_process": (
        DEVICE_PANEL,
        "",
        "Run both phases as two threads of one process, for a GPU where MPS cannot be used.",
    ),
    "faults": (DEVICE_PANEL, "FAULT", "Emulated device: inject a fault, e.g. decode:exit@step=100; may be repeated."),
    "kv_memory": (
        MEMORY_PANEL,
        "SIZE",
        "Size of the KV pool, e.g. 2GiB. Default: 1GiB; on a GPU what --gpu-memory-utilization leaves.",
    ),
    "gpu_memory_utilization": (MEMORY_PANEL, "X", "GPU: share of its memory for everything of this run."),
    "graph_memory": (
        MEMORY_PANEL,
        "SIZE",
        "GPU: most that the CUDA graphs of decode steps may take; batches beyond them run eagerly.",
    ),
    "memory_transport": (
        MEMORY_PANEL,
        "NAME",
        "GPU: vmm (file descriptors from a keeper without a context) or ipc (legacy handles from one with).",
    ),
    "block_size": (MEMORY_PANEL, "N", "Tokens per KV block."),
    "max_num_seqs": (MEMORY_PANEL, "N", "Most requests decoding at once."),
    "max_num_batched_tokens": (
        MEMORY_PANEL,
        "N",
        "Most tokens in one prefill forward; longer prompts run in chunks. In mode chunked, decode's rows count too.",
    ),
    "max_queue": (MEMORY_PANEL, "N", "Most requests waiting; further ones are answered 429 with Retry-After."),
    "discipline": (
        MEMORY_PANEL,
        "NAME",
        "Order of the queue: fcfs, sjf-window, edf, shortest-cache or memory-aware-deadline.",
    ),
    "admission": (
        MEMORY_PANEL,
        "NAME",
        "greedy: prefill whatever fits; throttle: prefill tokens in flight follow the queue and the free KV.",
    ),
    "prefix_caching": (
        MEMORY_PANEL,
        "",
        "Reuse the KV of prompts and answers that begin alike. Also --enable-prefix-caching.",
    ),
    "max_slice_ms": (
        MEMORY_PANEL,
        "MS",
        "About the longest that a plan switch or an urgent prompt waits for a slice of a prefill.",
    ),
    "slo_class": (
        SLO_PANEL,
        "TEXT",
        "A class of requests and its targets, e.g. 'interactive: ttft 300 ms, tpot 50 ms, itl 100 ms' or 'batch: "
        "none'; may be repeated.",
    ),
    "default_slo_class": (SLO_PANEL, "NAME", "Class of requests that name none. Default: the first one."),
    "plans": (
        SLO_PANEL,
        "FILE",
        "Plans the policy may choose from, as colocate plan writes them. Default: every split, or 16 of them where "
        "there are more.",
    ),
    "guards": (
        SLO_PANEL,
        "NAME",
        "Guards around a dynamic policy: hysteresis, dwell, decode-first, fallback, or none; may be repeated.",
    ),
    "shadow": (SLO_PANEL, "POLICY", "A policy that only records what it would have done."),
    "host": (HTTP_PANEL, "ADDR", "Address to listen on; 0.0.0.0 for all."),
    "port": (HTTP_PANEL, "PORT", "Port to listen on; 0 takes a free one."),
    "api_key": (HTTP_PANEL, "KEY", "Key that clients must send as a bearer token; may be repeated."),
    "admin_key": (
        HTTP_PANEL,
        "KEY",
        "Key that opens /control, as a bearer token; may be repeated. Without one the control calls are off.",
    ),
    "max_body_bytes": (HTTP_PANEL, "SIZE", "Largest request body; larger ones are answered 413."),
    "header_timeout_s": (HTTP_PANEL, "S", "Cut a client that opens a connection and sends no request for so long."),
    "stream_buffer_bytes": (HTTP_PANEL, "SIZE", "Unread output kept for one client."),
    "slow_client_timeout_s": (HTTP_PANEL, "S", "Cut a client whose buffer stayed full for so long."),
    "keepalive_s": (HTTP_PANEL, "S", "Send a comment on a silent stream this often."),
    "metrics_compat": (HTTP_PANEL, "NAMES", "Also publish metrics under other names: vllm."),
    "drain_timeout_s": (RUNTIME_PANEL, "S", "After Ctrl-C or SIGTERM, let running requests finish for so long."),
    "start_timeout_s": (RUNTIME_PANEL, "S", "Longest time for one process to become ready."),
    "heartbeat_timeout_s": (RUNTIME_PANEL, "S", "A process silent for so long is killed and replaced."),
    "progress_factor": (RUNTIME_PANEL, "X", "A step that takes so many times its prediction is hung ..."),
    "progress_floor_s": (RUNTIME_PANEL, "S", "... but never before so long."),
    "max_restarts": (
        RUNTIME_PANEL,
        "N",
        "Restarts of one process within the window before giving up with exit code 1.",
    ),
    "restart_window_s": (RUNTIME_PANEL, "S", "That window."),
    "log_level": (LOG_PANEL, "LEVEL", "debug, info, warning or error."),
    "log_format": (LOG_PANEL, "FORMAT", "console, json, or auto: console on a terminal."),
    "event_log": (LOG_PANEL, "DIR", "Record every event and command of the engine there, for `colocate replay`."),
}
# Other spellings of flags that are often typed.
_ALSO: dict[str, tuple[str, ...]] = {
    "faults": ("--fault",),
    "drain_timeout_s": ("--drain-timeout",),
    "max_num_batched_tokens": ("--chunk-size",),
}
# A switch has two names already and two more would crowd out its help: these work and its help text names them.
_ALSO_SWITCH = {"prefix_caching": "--enable-prefix-caching"}

SERVE_OPTIONS = tuple(HELP)
# What `colocate generate` needs of them: no HTTP.
GENERATE_OPTIONS = tuple(name for name in HELP if HELP[name][0] != HTTP_PANEL and name != "max_queue")
# What `colocate profile` needs of them: model, device, pool and batch sizes; nothing about scheduling.
_MEASURED = (
    "kv_memory",
    "gpu_memory_utilization",
    "graph_memory",
    "memory_transport",
    "block_size",
    "max_num_seqs",
    "max_num_batched_tokens",
    "log_level",
    "log_format",
)
PROFILE_OPTIONS = tuple(
    name
    for name in GENERATE_OPTIONS
    if name in _MEASURED
    or (HELP[name][0] == MODEL_PANEL and name != "served_model_name")
    or name in ("device", "units", "gpu", "arm", "single_process", "profile", "faults", "start_timeout_s")
)
# What `colocate simulate` shares with `serve`.
SIMULATE_OPTIONS = (
    "profile",
    "latency_profile",
    "mode",
    "plan",
    "plans",
    "guards",
    "shadow",
    "discipline",
    "admission",
    "prefix_caching",
    "max_slice_ms",
    "slo_class",
    "default_slo_class",
    "block_size",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_queue",
)
# What `colocate sweep` hands on to its servers: an arm says mode and plan, the sweep port and seed.
_SWEPT = {"mode", "plan", "seed", "event_log", "served_model_name"}
SWEEP_OPTIONS = tuple(name for name in SERVE_OPTIONS if HELP[name][0] != HTTP_PANEL and name not in _SWEPT)


def with_settings(names: tuple[str, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option per named setting. The command gets those that were given as its `flags` argument:
    a dict from setting name to text (or bool, or list of text), not yet converted."""

    also = [name for name in names if name in _ALSO_SWITCH]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def wrapper(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in names}
            for name in also:
                value = arguments.pop(f"also_{name}")
                given[name] = value if given[name] is None else given[name]
            flags = {name: value for name, value in given.items() if value is not None and value != []}
            command(flags=flags, **arguments)

        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.name != "flags"]
        own += [_parameter(SETTINGS[name]) for name in names] + [_hidden(name) for name in also]
        wrapper.__signature__ = signature.replace(parameters=own)  # type: ignore[attr-defined]
        wrapper.__doc__, wrapper.__name__ = command.__doc__, command.__name__
        return wrapper

    return decorate


def _switch(flag: str) -> str:
    return f"{flag}/--no-{flag[2:]}"


def _hidden(name: str) -> inspect.Parameter:
    option = typer.Option(_switch(_ALSO_SWITCH[name]), hidden=True)
    return inspect.Parameter(
        f"also_{name}", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[bool | None, option]
    )


def _parameter(setting: Setting) -> inspect.Parameter:
    panel, metavar, text = HELP[setting.name]
    spellings: tuple[str, ...] = (setting.flag, *_ALSO.get(setting.name, ()))
    if setting.kind is bool:
        spellings = (_switch(setting.flag),)
        metavar = " "
    option = typer.Option(
        *spellings,
        help=text + (f" [dim](default {setting.default_text})[/]" if setting.default_text else ""),
        metavar=metavar or None,
        rich_help_panel=panel,
        show_default=False,
    )
    kind: Any = bool | None if setting.kind is bool else (list[str] | None if setting.is_list else str | None)
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
    )
