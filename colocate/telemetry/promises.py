"""Whether a request kept what it was promised. The frontend, the simulator and the bench judge by these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from colocate.config.slo import SloClass
from colocate.messages.slo import NO_SLO


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether each target was met; None where nothing was promised."""

    ttft: bool | None = None
    tpot: bool | None = None
    itl: bool | None = None

    @property
    def both(self) -> bool | None:
        """All there are, however many; None of none."""
        judged = [kept for kept in (self.ttft, self.tpot, self.itl) if kept is not None]
        return all(judged) if judged else None


def judge_latencies(
    slo: SloClass, num_prompt_tokens: int, ttft_s: float | None, tpot_s: float | None, itl_p99_s: float | None
) -> Verdict:
    """Of a finished answer. One token has neither a time per output token nor a gap (None): it keeps those promises.
    No first token (None) keeps no promise about it."""
    target_s = slo.ttft_target_s(num_prompt_tokens)
    return Verdict(
        None if target_s is None else ttft_s is not None and ttft_s <= target_s,
        None if slo.tpot_s is None else tpot_s is None or tpot_s <= slo.tpot_s,
        None if slo.itl_s is None else itl_p99_s is None or itl_p99_s <= slo.itl_s,
    )


def all_missed(slo: SloClass) -> Verdict:
    """Of a request that failed: every promise is broken, also where its first token was in time."""
    return Verdict(*(None if target_s is None else False for target_s in (slo.ttft_target_s(0), slo.tpot_s, slo.itl_s)))


def slo_by_name(classes: Sequence[SloClass], default_class: str) -> Mapping[str, SloClass]:
    """The classes by name; the empty name is the default one: as given, else the first, else no promise."""
    slos = {slo.name: slo for slo in classes}
    default = slos.get(default_class) or (classes[0] if classes else NO_SLO)
    return {**slos, "": default}
