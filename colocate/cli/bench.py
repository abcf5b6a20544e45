"""`colocate bench`: one load against one server that is ready, and what came of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import msgspec
from rich.console import Console

from colocate.bench.plan import BenchPlan, Endpoint
from colocate.bench.run import run_bench
from colocate.bench.slo_library import published_definitions
from colocate.cli.bench_figures import show
from colocate.config.slo import SloClass, parse_slo_classes
from colocate.errors import ConfigError
from colocate.workload.recipe import Recipe, check_numbers, cook
from colocate.workload.rows import Workload, make_workload

EXIT_INTERRUPTED = 130
MEASURED_S = 60.0
WARMUP_S = 5.0
_MOST_ROWS = 100_000
# Rows for a closed loop that ends by time: so many per slot and second are more than a server answers.
_ROWS_PER_SLOT_S = 20
_NO_END_S = 30 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """The command line."""

    url: str
    recipe: Recipe
    model: str | None = None
    api_key: str | None = None
    endpoint: str = "completions"
    concurrency: int | None = None
    num_prompts: int | None = None
    warmup_s: float | None = None
    cooldown_s: float = 0.0
    seed: int = 0
    slo_class: tuple[str, ...] = ()
    slo: tuple[str, ...] = ()
    default_slo_class: str | None = None
    timeout_s: float = 600.0
    drain_s: float = 60.0
    lateness_bound_s: float = 0.010
    out: Path | None = None
    arm: str = ""
    tokenizer: Path | None = None
    prompts: str = "auto"
    extra_body: str | None = None
    header: tuple[str, ...] = ()
    keep_token_ids: bool = False
    json: bool = False
    quiet: bool = False


def run_command(ask: Ask) -> int:
    """Run, and print the figures. Raises ConfigError."""
    plan = bench_plan(ask)
    console = Console(stderr=ask.json, soft_wrap=True, highlight=False, markup=False)
    try:
        manifest = run_bench(plan, quiet=ask.quiet or ask.json)
    except KeyboardInterrupt:
        if (plan.out / "manifest.json").exists():
            show(plan.out, console)
        return EXIT_INTERRUPTED
    figures = show(plan.out, console)
    if ask.json:
        sys.stdout.write(msgspec.json.encode(figures).decode() + "\n")
    return 0 if manifest.status == "valid" else 1


def bench_plan(ask: Ask) -> BenchPlan:
    """Raises ConfigError."""
    if ask.endpoint not in ("completions", "chat"):
        raise ConfigError("--endpoint", f"no endpoint is named {ask.endpoint!r}", "completions or chat")
    if ask.prompts not in ("auto", "ids", "text"):
        raise ConfigError("--prompts", f"cannot be {ask.prompts!r}", "auto, ids or text")
    if ask.prompts == "ids" and ask.endpoint == "chat":
        raise ConfigError("--prompts", "ids cannot be a chat", "use --endpoint completions")
    by_time = ask.num_prompts is None and ask.recipe.trace is None
    warmup_s = (WARMUP_S if by_time else 0.0) if ask.warmup_s is None else ask.warmup_s
    classes = slo_texts(ask.slo_class, ask.slo)
    names = [known.name for known in parse_slo_classes(classes, "--slo-class")]
    if ask.default_slo_class is not None and ask.default_slo_class not in names:
        problem = f"there is no SLO class {ask.default_slo_class!r}"
        raise ConfigError("--default-slo-class", problem, f"one of: {', '.join(names) or 'none is given'}")
    endpoint: Endpoint = "chat" if ask.endpoint == "chat" else "completions"
    return BenchPlan(
        url=ask.url,
        workload=load_of(ask, warmup_s),
        out=ask.out or Path("bench-results") / f"{datetime.now():%Y%m%d-%H%M%S}",
        api_key=ask.api_key,
        model=ask.model,
        endpoint=endpoint,
        seed=ask.seed,
        rate=ask.recipe.rates[0] if len(ask.recipe.rates) == 1 and ask.recipe.speed is None else None,
        concurrency=ask.concurrency,
        warmup_s=warmup_s,
        cooldown_s=ask.cooldown_s,
        timeout_s=ask.timeout_s,
        drain_s=ask.drain_s,
        lateness_bound_s=ask.lateness_bound_s,
        slo_classes=classes,
        default_slo_class=ask.default_slo_class or (names[0] if names else ""),
        arm=ask.arm,
        keep_token_ids=ask.keep_token_ids,
        extra_body=_object(ask.extra_body),
        headers=dict(_header(text) for text in ask.header),
        prompts="text" if ask.prompts == "text" else "ids" if ask.prompts == "ids" else "auto",
        tokenizer=ask.tokenizer,
    )


def load_of(ask: Ask, warmup_s: float) -> Workload:
    """The whole load: what is measured, and the warm-up and cool-down around it. Raises ConfigError."""
    recipe, around_s = ask.recipe, warmup_s + ask.cooldown_s
    check_numbers(recipe)
    if ask.num_prompts is not None and ask.num_prompts < 1:
        raise ConfigError("--num-prompts", f"cannot be {ask.num_prompts}", "at least 1")
    if ask.num_prompts is not None and recipe.duration_s is not None:
        raise ConfigError("--num-prompts", "is given beside --duration", "end the load by one of them")
    if ask.concurrency is not None:
        return _closed_load(ask, around_s)
    if recipe.trace is not None:
        if recipe.duration_s is not None:
            recipe = replace(recipe, duration_s=recipe.duration_s + around_s)
        workload = cook(recipe, ask.seed)
        return workload if ask.num_prompts is None else _first(workload, ask.num_prompts)
    if not recipe.rates:
        remedy = (
            "give requests per second with --rate, requests in flight with --concurrency, or a trace with --workload"
        )
        raise ConfigError("--rate", "is missing", remedy)
    if ask.num_prompts is not None:
        duration_s = (ask.num_prompts * 1.5 + 100) / min(recipe.rates)
        while len((longer := cook(replace(recipe, duration_s=duration_s), ask.seed)).rows) < ask.num_prompts:
            duration_s *= 2  # bursts may leave long pauses
        return _first(longer, ask.num_prompts)
    measured_s = MEASURED_S if recipe.duration_s is None else recipe.duration_s
    return cook(replace(recipe, duration_s=measured_s + around_s), ask.seed)


def _closed_load(ask: Ask, around_s: float) -> Workload:
    """Only the order of its rows counts; arrivals do not."""
    recipe = ask.recipe
    if recipe.rates or recipe.speed is not None:
        problem = "is given beside --rate or --speed"
        raise ConfigError("--concurrency", problem, "a closed loop sends as fast as it is answered: choose one")
    assert ask.concurrency is not None
    if ask.num_prompts is not None and ask.cooldown_s:
        raise ConfigError("--cooldown", "needs an end by time in a closed loop", "give --duration, not --num-prompts")
    measured_s = MEASURED_S if recipe.duration_s is None else recipe.duration_s
    whole_s = measured_s + around_s if ask.num_prompts is None else _NO_END_S
    if recipe.trace is not None:
        rows = cook(replace(recipe, duration_s=None), ask.seed).rows
        if recipe.duration_s is None:
            whole_s = _NO_END_S
        if ask.num_prompts is not None:
            _check_number(ask.num_prompts, recipe.trace.name, len(rows))
        rows = rows[: ask.num_prompts]
    else:
        most = min(_MOST_ROWS, int(whole_s * max(ask.concurrency, 1) * _ROWS_PER_SLOT_S))
        num_rows = most if ask.num_prompts is None else ask.num_prompts
        rows = cook(replace(recipe, rates=(1.0,), arrivals="constant", duration_s=float(num_rows)), ask.seed).rows
    return Workload(recipe.trace.name if recipe.trace else recipe.pattern, rows, whole_s)


def _check_number(wanted: int, name: str, number: int) -> None:
    if wanted > number:
        remedy = f"give fewer, or draw lengths from it: --lengths {name} --rate X"
        raise ConfigError("--num-prompts", f"cannot be {wanted}: {name} holds {number} requests", remedy)


def _first(workload: Workload, number: int) -> Workload:
    _check_number(number, workload.name, len(workload.rows))
    rows = workload.rows[:number]
    return make_workload(workload.name, rows, rows[-1].arrival_s + 1 / workload.rate)


def slo_texts(classes: Sequence[str], named: Sequence[str]) -> tuple[str, ...]:
    """Classes as texts, published definitions by their name among them. Raises ConfigError."""
    texts = [class_text(known) for known in parse_slo_classes(classes, "--slo-class")]
    published = {definition.name: definition.slo for definition in published_definitions()}
    for name in named:
        if name in published:
            texts.append(class_text(published[name]))
        elif any(character.isspace() for character in name.strip()):
            texts += map(class_text, parse_slo_classes([name if ":" in name else f"target: {name}"], "--slo"))
        else:
            raise ConfigError("--slo", f"no definition is named {name!r}", f"choose one of: {', '.join(published)}")
    return tuple(texts)


def class_text(slo: SloClass) -> str:
    """As `--slo-class` takes it."""
    targets = (
        ("ttft", slo.ttft_s),
        ("ttft_per_token", slo.ttft_per_token_s),
        ("tpot", slo.tpot_s),
        ("itl", slo.itl_s),
    )
    given = [f"{name} {seconds * 1e3:.12g} ms" for name, seconds in targets if seconds is not None]
    return f"{slo.name}: {', '.join(given) or 'none'}"


def _object(text: str | None) -> dict[str, object]:
    if text is None:
        return {}
    try:
        return msgspec.json.decode(text.encode(), type=dict[str, object])
    except msgspec.DecodeError as error:
        raise ConfigError("--extra-body", f"is no JSON object: {error}", """write '{"top_k": 1}'""") from None


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise ConfigError("--header", f"{text!r} is no header", "write NAME=VALUE")
    return name.strip(), value.strip()
