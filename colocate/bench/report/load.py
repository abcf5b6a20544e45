"""What the arms were given, in words: model; lengths, arrivals, how much of it. From the rows themselves, so that a
trace and a synthetic load are told in the same way."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from colocate.bench.metrics.window import offered
from colocate.bench.records import SweepManifest
from colocate.bench.report.collect import RunView
from colocate.bench.report.words import count, listed, number


def model_words(views: Sequence[RunView]) -> str:
    """`model demo`."""
    models = dict.fromkeys(_short(view.run.manifest.target.model) for view in views)
    return f"model{'s' if len(models) > 1 else ''} {listed(list(models), 3)}"


def load_words(views: Sequence[RunView], sweeps: Sequence[SweepManifest]) -> str:
    """`prompts of 252 and answers of 41 tokens (medians), Poisson arrivals, 3 seeds`."""
    rows = [row for view in views if view.counts for row in offered(view.run)]
    words: list[str] = []
    if rows:
        # Asked for, not answered: a request that failed has no answer, and its length is part of the load.
        prompt, answer = (statistics.median(lengths) for lengths in (
            [row.prompt_tokens for row in rows], [row.max_tokens for row in rows]))  # fmt: skip
        words.append(f"prompts of {number(prompt)} and answers of {number(answer)} tokens (medians)")
    arrivals = dict.fromkeys(found for sweep in sweeps if (found := _arrivals(sweep)))
    if arrivals:
        words.append(f"{listed(list(arrivals))} arrivals")
    seeds = {view.run.manifest.seed for view in views if view.counts}
    return ", ".join([*words, count(len(seeds), "seed")])


def _short(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2] or "not named"


def _arrivals(sweep: SweepManifest) -> str:
    """Of a synthetic load; a trace has its own."""
    workload = sweep.recipe.get("workload")
    found = workload.get("arrivals") if isinstance(workload, dict) else sweep.recipe.get("arrivals")
    return {"poisson": "Poisson"}.get(found, found) if isinstance(found, str) else ""
