"""What a request is promised, and whether the promise was kept: by the frontend's own clock, from arrival to tokens.

A request counts for a measure where it has a target for it. What the server refused or failed counts as missed; what
its client gave up, or could never be served (400), counts nowhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from starlette.datastructures import Headers

from colocate.config.slo import LATE_GAPS_SHARE, MAX_TARGET_S, MIN_TARGET_S, SloClass
from colocate.errors import RequestError
from colocate.messages.slo import NO_SLO
from colocate.telemetry.promises import Verdict

CLASS_HEADER = "x-slo-class"
TTFT_HEADER = "x-slo-ttft-ms"
TPOT_HEADER = "x-slo-tpot-ms"
ITL_HEADER = "x-slo-itl-ms"
MIN_TARGET_MS, MAX_TARGET_MS = MIN_TARGET_S * 1e3, MAX_TARGET_S * 1e3

GOOD, MISSED = "good", "missed"
MEASURES = ("ttft", "tpot", "itl", "both")  # the last: all there are

_NUMBER = re.compile(r"\d+\.?\d*(e[+-]?\d+)?|\.\d+(e[+-]?\d+)?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class RequestSlo:
    """`name` is the class as the engine is told it, empty for the default; `slo` what it promises, with the request's
    own targets applied."""

    name: str
    slo: SloClass
    ttft_s: float | None = None  # the request's own targets
    tpot_s: float | None = None
    itl_s: float | None = None


class SloTable:
    """The classes of this server. Their names are fixed at start; their targets follow the engine's."""

    def __init__(self, classes: Iterable[SloClass], default: str | None) -> None:
        self._configured = {known.name: known for known in classes}
        self._classes = dict(self._configured)
        self._default = default or next(iter(self._classes), "")

    @property
    def classes(self) -> list[SloClass]:
        return list(self._classes.values())

    @property
    def changed(self) -> list[SloClass]:
        """Classes whose targets an operator has changed since the start."""
        return [known for known in self._classes.values() if known != self._configured[known.name]]

    @property
    def default(self) -> str:
        """Name of the default class; empty where none is configured."""
        return self._default

    def adopt(self, changed: Iterable[SloClass]) -> None:
        """The engine's targets are the ones in force; names that were never configured are not taken."""
        for known in changed:
            if known.name in self._classes:
                self._classes[known.name] = known

    def get(self, name: str, param: str) -> SloClass:
        """Raises RequestError at `param` with the known names."""
        known = self._classes.get(name)
        if known is None:
            names = f"this server has: {', '.join(self._classes)}" if self._classes else "this server has none"
            message = f"{param}: there is no SLO class {name!r}; {names}"
            raise RequestError(message, param=param, code="unknown_slo_class")
        return known

    def of_request(self, headers: Headers, body_class: str | None) -> RequestSlo:
        """From the headers and the body's field. Raises RequestError."""
        header_class = _single(headers, CLASS_HEADER)
        if header_class is not None and body_class is not None and header_class != body_class:
            message = (
                f"slo_class is {body_class!r}, but the header {CLASS_HEADER} says {header_class!r}; send one of them"
            )
            raise RequestError(message, param="slo_class")
        name = self._default
        if body_class is not None:
            name = self.get(body_class, "slo_class").name
        elif header_class is not None:
            name = self.get(header_class, CLASS_HEADER).name
        own_s = [_target_s(headers, header) for header in (TTFT_HEADER, TPOT_HEADER, ITL_HEADER)]
        return RequestSlo(name, self._classes.get(name, NO_SLO).with_targets(*own_s), *own_s)

    def of_refused(self, headers: Headers) -> SloClass:
        """For a request that was turned away before its body was read."""
        known = self._classes.get(headers.get(CLASS_HEADER, self._default))
        return known or self._classes.get(self._default, NO_SLO)


def _single(headers: Headers, name: str) -> str | None:
    values = set(headers.getlist(name))
    if len(values) > 1:
        raise RequestError(f"the header {name} is given more than once", param=name)
    return values.pop() if values else None


def _target_s(headers: Headers, name: str) -> float | None:
    text = _single(headers, name)
    if text is None:
        return None
    number_ms = float(text) if _NUMBER.fullmatch(text) else 0.0
    if not MIN_TARGET_MS <= number_ms <= MAX_TARGET_MS:
        message = f"{name}: {text!r} is not a number of milliseconds from {MIN_TARGET_MS:g} to {MAX_TARGET_MS:.0f}"
        raise RequestError(message, param=name, code="invalid_value")
    return number_ms / 1e3


def judge(
    slo: SloClass,
    *,
    arrival_ns: int,
    first_ns: int,
    last_ns: int,
    num_prompt_tokens: int,
    num_output_tokens: int,
    num_late_gaps: int,
) -> Verdict:
    """Of an answer that is complete; `num_late_gaps` of its gaps between tokens were over `itl_s`.

    One token has no time per output token and no gap: it keeps those promises.
    """
    ttft_s, tpot_s = slo.ttft_target_s(num_prompt_tokens), slo.tpot_s
    num_gaps = max(0, num_output_tokens - 1)
    mean_gap_s = (last_ns - first_ns) / 1e9 / num_gaps if num_gaps else 0.0
    return Verdict(
        None if ttft_s is None else (first_ns - arrival_ns) / 1e9 <= ttft_s,
        None if tpot_s is None else mean_gap_s <= tpot_s,
        None if slo.itl_s is None else num_late_gaps <= int(LATE_GAPS_SHARE * num_gaps),
    )


@dataclass(slots=True)
class SloCounts:
    """How many requests (choices) of each class kept each promise. Owned by the event loop."""

    counts: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # (measure, class, outcome)

    def add(self, class_name: str, verdict: Verdict) -> None:
        for measure, kept in zip(MEASURES, (verdict.ttft, verdict.tpot, verdict.itl, verdict.both), strict=True):
            if kept is not None:
                self.counts[measure, class_name, GOOD if kept else MISSED] += 1

    def of_class(self, class_name: str) -> dict[str, int]:
        """Requests that kept all they were promised, and those that did not."""
        return {outcome: self.counts["both", class_name, outcome] for outcome in (GOOD, MISSED)}
