"""Do two shares run at the same time, or in turns?"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from colocate.device.cuda.proof.check import Check, CheckSpec, Group
from colocate.device.cuda.proof.commands import Burn, BurnApart, Burned, Span
from colocate.device.cuda.proof.crew import DECODE, Crew

CONCURRENT = CheckSpec("concurrent", "two processes run at the same time", Group.TWO_PROCESSES)
THREADS_CONCURRENT = CheckSpec(
    "threads_concurrent", "two threads of one process run at the same time", Group.ONE_PROCESS, is_necessary=False
)

LEAST_CONCURRENCY = 0.9
_LEAST_OVERLAP = 0.5
_TARGET_NS = 100_000_000
_TRIAL_ROUNDS = 20_000
_MOST_ROUNDS = 2**32 - 1  # what the kernel can count
_ALONE_TIMES = 2
_TOGETHER_TIMES = 3
_MOST_TIMES = 8

Run = Callable[[int], list[Span]]  # rounds of work -> what it took


@dataclass(frozen=True, slots=True)
class Together:
    """Two pieces of work, each alone and both at once, in ns of the device's clock."""

    alone_a_ns: int
    alone_b_ns: int
    a: Span
    b: Span

    @property
    def overlap_ns(self) -> int:
        return max(0, min(self.a.end_ns, self.b.end_ns) - max(self.a.begin_ns, self.b.begin_ns))

    @property
    def overlaps_enough(self) -> bool:
        """At least half of the shorter one: less says nothing about either."""
        return self.overlap_ns >= _LEAST_OVERLAP * min(self.alone_a_ns, self.alone_b_ns)

    @property
    def concurrency(self) -> float:
        """1 - (time lost by both) / (time both were under way): 1 where each takes as long as alone, 0 where they
        take turns. Late starts do not count against it: only what happened while both were under way does."""
        lost_ns = (self.a.end_ns - self.a.begin_ns - self.alone_a_ns) + (
            self.b.end_ns - self.b.begin_ns - self.alone_b_ns
        )
        return 1.0 - lost_ns / self.overlap_ns if self.overlap_ns else 0.0

    def as_json(self) -> dict[str, object]:
        spans = {name: (span.end_ns - span.begin_ns) / 1e6 for name, span in (("a", self.a), ("b", self.b))}
        return {
            "alone_ms": [self.alone_a_ns / 1e6, self.alone_b_ns / 1e6],
            "together_ms": [spans["a"], spans["b"]],
            "overlap_ms": self.overlap_ns / 1e6,
            "concurrency": round(self.concurrency, 4),
        }


def check_concurrent(crew: Crew, splits: list[tuple[int, int]]) -> Check:
    """Work of about 100 ms on each share of each split (prefill, decode), alone and together."""
    prefill, decode = crew.both()
    limit_s = crew.limits.answer_s
    results = {}
    for prefill_sms, decode_sms in splits:

        def run_a(rounds: int, share: int = prefill_sms) -> list[Span]:
            return prefill.ask(Burn(share, rounds), Burned, limit_s).spans

        def run_b(rounds: int, share: int = decode_sms) -> list[Span]:
            return decode.ask(Burn(share, rounds), Burned, limit_s).spans

        def run_both(rounds: int, shares: tuple[int, int] = (prefill_sms, decode_sms)) -> list[Span]:
            prefill.begin(Burn(shares[0], rounds))
            decode.begin(Burn(shares[1], rounds))
            return prefill.finish(Burned, limit_s).spans + decode.finish(Burned, limit_s).spans

        results[f"p{prefill_sms}d{decode_sms}"] = measure(run_a, run_b, run_both)
    remedy = (
        "MPS is not in force: see the checks on MPS above"
        if crew.has_mps
        else "without MPS two processes take turns: install the driver's MPS programs, or serve with --single-process"
    )
    return judge(CONCURRENT, results, remedy)


def check_threads_concurrent(crew: Crew, split: tuple[int, int]) -> Check:
    """The same within one process: what --single-process is built on."""
    decode, limit_s = crew.worker(DECODE), crew.limits.answer_s

    def run(prefill_sms: int, decode_sms: int) -> Run:
        return lambda rounds: decode.ask(BurnApart(prefill_sms, decode_sms, rounds), Burned, limit_s).spans

    result = measure(run(split[0], 0), run(0, split[1]), run(*split))
    remedy = "the two green contexts do not run side by side on this GPU: only --mode chunked is of use here"
    return judge(THREADS_CONCURRENT, {f"p{split[0]}d{split[1]}": result}, remedy)


def measure(run_a: Run, run_b: Run, run_both: Run) -> list[Together]:
    """Several times both, against the shortest time alone (whatever else the machine does makes it longer)."""
    trial_ns = max(1, _length(run_a(_TRIAL_ROUNDS)[0]))
    rounds = min(_MOST_ROUNDS, max(_TRIAL_ROUNDS, _TRIAL_ROUNDS * _TARGET_NS // trial_ns))
    alone_a_ns = min(_length(run_a(rounds)[0]) for _ in range(_ALONE_TIMES))
    alone_b_ns = min(_length(run_b(rounds)[0]) for _ in range(_ALONE_TIMES))
    together: list[Together] = []
    for _ in range(_MOST_TIMES):
        a, b = run_both(rounds)
        result = Together(alone_a_ns, alone_b_ns, a, b)
        together.append(result)
        if sum(each.overlaps_enough for each in together) == _TOGETHER_TIMES:
            break
    return together


def judge(spec: CheckSpec, results: dict[str, list[Together]], remedy: str) -> Check:
    """The worst split decides; of each split, the median of the runs that overlapped."""
    figures: dict[str, float] = {}
    for name, runs in results.items():
        good = [run.concurrency for run in runs if run.overlaps_enough]
        figures[name] = statistics.median(good) if good else 0.0
    data = {name: [run.as_json() for run in runs] for name, runs in results.items()}
    detail = ", ".join(f"{name}: {value:.2f} of ideal" for name, value in figures.items())
    if min(figures.values()) < LEAST_CONCURRENCY:
        return spec.failed(f"{detail}; {LEAST_CONCURRENCY} is needed, 0 is taking turns", remedy, splits=data)
    return spec.passed(detail, splits=data)


def _length(span: Span) -> int:
    return span.end_ns - span.begin_ns
