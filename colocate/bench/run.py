"""One run from end to end: look at the target, prepare prompts, offer the load, write the run folder."""

from __future__ import annotations

from colocate.bench.plan import BenchPlan
from colocate.bench.records import RunManifest

__all__ = ["BenchPlan", "run_bench"]


def run_bench(plan: BenchPlan, *, quiet: bool = False) -> RunManifest:
    """Run the plan and leave `plan.out` as bench/records.py says. `quiet`: no progress on standard error.

    The folder holds a manifest of status `partial` from the start, so that a killed run says what it is. Whatever the
    server does is a row; the manifest's status says whether the client kept its promises.

    Raises ConfigError for what the operator can mend: an unreachable server, a wrong key, an unknown model, a folder
    that is taken or full (rows are kept, status partial). Raises KeyboardInterrupt after Ctrl-C, with every row written
    and status partial.
    """
    raise NotImplementedError(plan, quiet)
