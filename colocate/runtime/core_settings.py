"""What the pure core is told of a run: the operator's words and the facts found at start."""

from __future__ import annotations

from colocate.config.serve import ServeConfig
from colocate.config.slo import slo_classes
from colocate.core.settings import EngineSettings
from colocate.messages.spec import RuntimeFacts


def core_settings(config: ServeConfig, facts: RuntimeFacts, last_plan_seq: int = 0) -> EngineSettings:
    """`last_plan_seq` is what the board says; an engine counts on from there. Raises ConfigError where settings
    contradict each other."""
    scheduler = config.scheduler
    settings = EngineSettings(
        num_blocks=facts.num_blocks,
        block_size=facts.block_size,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        max_queue=scheduler.max_queue,
        total_units=facts.total_units,
        unit_granularity=facts.unit_granularity,
        decode_shares=facts.decode_shares,
        mode=scheduler.mode,
        one_fate=config.device.single_process or facts.device_kind == "cuda",
        plan=scheduler.plan,
        first_plan_seq=last_plan_seq + 1,
        shadow=scheduler.shadow,
        guards=scheduler.guards,
        discipline=scheduler.discipline,
        admission=scheduler.admission,
        prefix_caching=scheduler.prefix_caching,
        slo_classes=slo_classes(scheduler),
        default_slo_class=scheduler.default_slo_class or "",
        max_slice_ms=scheduler.max_slice_ms,
        latency=facts.latency,
        candidates=facts.candidates,
        best_static=facts.best_static,
    )
    settings.check()
    return settings
