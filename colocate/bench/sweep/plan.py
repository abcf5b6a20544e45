"""What a sweep is asked to do, checked, and what of it makes two sweeps the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from colocate.bench.plan import DRAIN_S, LATENESS_BOUND_S, TIMEOUT_S, Endpoint
from colocate.bench.quality import RECALL_PAIRS
from colocate.bench.records import SCHEMA_VERSION, SweepArm, SweepManifest
from colocate.bench.sweep.load import Load
from colocate.bench.sweep.order import slug
from colocate.bench.sweep.search import Search
from colocate.bench.systems.system import System
from colocate.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallPlan:
    """Questions for each of `arms`, once, after the last run. `system` and the arms' flags start the embedded model,
    which knows how to answer."""

    arms: tuple[SweepArm, ...]
    system: System
    num_questions: int
    num_pairs: int = RECALL_PAIRS
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """`rates` ascend: those to run, or with `search` those to search among. `systems`: by the name that arms give."""

    model: str
    out: Path
    arms: tuple[SweepArm, ...]
    systems: Mapping[str, System]
    load: Load
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    slo_classes: tuple[str, ...]
    default_slo_class: str = ""
    search: Search | None = None
    keep_server: bool = False
    order_seed: int = 0
    budget_s: float | None = None
    endpoint: Endpoint = "completions"
    timeout_s: float = TIMEOUT_S
    drain_s: float = DRAIN_S
    lateness_bound_s: float = LATENESS_BOUND_S
    asked: Mapping[str, object] = field(default_factory=dict)  # names of arms, flags of servers: as they were given
    device_noise: bool = False  # the device draws its own noise: it gets the run's seed
    recall: RecallPlan | None = None  # no part of what makes two sweeps the same: it can be asked for later
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.rates or any(not rate > 0 for rate in self.rates):
            raise ConfigError("--rates", "are missing or not above 0", "for example --rates 1,2,4, or --search 0.5:8")
        if list(self.rates) != sorted(set(self.rates)):
            raise ConfigError("--rates", "do not ascend, or one is given twice", "list each rate once, lowest first")
        if not self.slo_classes:
            raise ConfigError(
                "--slo-class", "is missing", "a sweep measures what is promised: --slo-class 'chat: ttft 1 s'"
            )
        if self.search is not None and self.keep_server:
            problem = "keeps no server in a search, where an arm's next rate follows from the others' runs"
            raise ConfigError("--keep-server", problem, "drop it, or give --rates")
        folders: dict[str, str] = {}
        for arm in self.arms:
            other = folders.setdefault(slug(arm.name), arm.name)
            if other != arm.name:
                raise ConfigError("--arms", f"{other!r} and {arm.name!r} would share a folder", "rename one of them")

    def run_seed(self, seed: int, level: int) -> int:
        """What a run draws its arrivals and prompts from. Under a kept server every rate has prompts of its own: the
        same ones again would be found in its prefix cache."""
        return seed + 1_000_000 * level if self.keep_server else seed

    def manifest(self, created: str, host: Mapping[str, object], git: Mapping[str, object]) -> SweepManifest:
        return SweepManifest(
            schema_version=SCHEMA_VERSION,
            created=created,
            command=self.command,
            arms=self.arms,
            rates=() if self.search is not None else self.rates,  # a search runs few of its grid's
            seeds=self.seeds,
            recipe=self._recipe(),
            slo_classes=self.slo_classes,
            min_requests=self.load.min_requests,
            budget_s=self.budget_s,
            host=dict(host),
            git=dict(git),
        )

    def _recipe(self) -> dict[str, object]:
        """Everything else that a figure depends on, as plain JSON values."""
        recipe = {name: value for name, value in asdict(self.load.recipe).items() if value not in (None, (), "")}
        if self.load.recipe.trace is not None:
            recipe["trace"] = str(self.load.recipe.trace)
        return {
            "model": self.model,
            "workload": {name: list(value) if isinstance(value, tuple) else value for name, value in recipe.items()},
            "warmup_s": self.load.warmup_s,
            "cooldown_s": self.load.cooldown_s,
            "default_slo_class": self.default_slo_class,
            "search": None if self.search is None else {**asdict(self.search), "rates": list(self.rates)},
            "keep_server": self.keep_server,
            "order_seed": self.order_seed,
            "endpoint": self.endpoint,
            "timeout_s": self.timeout_s,
            "drain_s": self.drain_s,
            "lateness_bound_s": self.lateness_bound_s,
            **self.asked,
        }
