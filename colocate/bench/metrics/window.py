"""Which rows and which seconds count.

    0          warmup_s                 duration_s - cooldown_s   duration_s
    | warm-up  | measured: the window   | cool-down               |

A request is **offered** if it was scheduled in the window, whatever became of it. Throughput counts what arrived in the
window, whoever it belongs to: tokens of warm-up requests that are still running are work that the server does there.
"""

from __future__ import annotations

from msgspec import Struct

from colocate.bench.read import Run
from colocate.bench.records import RequestRow, RunManifest


class Window(Struct, frozen=True):
    """Seconds after the start of the run; `end_s` is not in it."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        return max(0.0, self.end_s - self.start_s)

    def holds(self, at_s: float) -> bool:
        return self.start_s <= at_s < self.end_s


def window(manifest: RunManifest) -> Window:
    """From warmup_s to duration_s - cooldown_s; a run that was cut ends where it was cut (elapsed_s)."""
    return Window(manifest.warmup_s, min(manifest.duration_s - manifest.cooldown_s, manifest.elapsed_s))


def offered(run: Run) -> list[RequestRow]:
    """Every row of phase `measured`, each once. Nobody offered what was due after a run was cut or where there was no
    server (`not_sent`, not due before elapsed_s; a whole run has no such row), nor what a closed loop did not come to:
    these are left out."""
    manifest = run.manifest
    is_closed_loop = manifest.concurrency is not None
    return [
        row
        for row in run.rows
        if row.phase == "measured"
        and not (row.outcome == "not_sent" and (is_closed_loop or row.scheduled_s >= manifest.elapsed_s))
    ]
