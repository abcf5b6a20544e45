"""From visits to a profile: the latency model's coefficients, contention, noise, and the errors on states that the fit
has not seen.

A state's seconds are the median over its quieter visits of what each visit found typical: neither one long forward nor
one slow minute moves it, and visits beside other programs give way to those without. Coefficients minimise the relative
error (a millisecond matters more to a short step than to a long prefill) under the constraint that none is negative:
Lawson and Hanson's NNLS, reweighted for outliers after Huber (1964).
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from msgspec import structs
from scipy.optimize import nnls

from colocate.config.profile import (
    Coefficients,
    ContentionProfile,
    DeviceProfile,
    FitError,
    NoiseProfile,
    Phase,
    Sample,
    ShareProfile,
)
from colocate.core.latency import LatencyModel
from colocate.errors import ConfigError
from colocate.runtime.profiling.journal import Measured, Visit

HELD_OUT = 0.25  # of the states of each setup
MIN_STATES = 6  # of a setup
_PHASES: tuple[Phase, Phase] = ("prefill", "decode")
_HUBER_S = 0.05  # relative error beyond which a state counts less
_REWEIGHTINGS = 20
# A repeat so much longer than its visit's median, and beyond the body of the distribution, is of the tail.
_TAIL_FACTOR = 1.5
_TAIL_SIGMAS = 4.0
_MANY = 8  # repeats: the quickest of so many met nobody
_LEAST = 0.2  # of a few repeats' median
_QUIET = 0.05  # of the time with others: a visit below this counts in full

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What the profile says about whose numbers these are."""

    name: str
    source: str
    units: int
    granularity: int
    num_layers: int
    model: str
    dtype: str
    kv_tokens: int
    versions: dict[str, str]
    created: str


@dataclass(slots=True)
class _State:
    """One state of one setup, from all its visits."""

    setup: str
    index: int
    phase: Phase
    units: int
    peer_units: int
    linear: list[float] = field(default_factory=list)
    pairs: list[float] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)
    is_held_out: bool = False

    def sample(self) -> Sample:
        linear, pairs = float(np.mean(self.linear)), float(np.mean(self.pairs))
        quiet = max(_QUIET, float(np.median(self.foreign)))
        seconds = float(
            np.median([each for each, foreign in zip(self.medians, self.foreign, strict=True) if foreign <= quiet])
        )
        return Sample(self.phase, self.units, self.peer_units, linear, pairs, seconds, self.is_held_out)


def fit_profile(visits: Sequence[Visit], setups: Iterable[str], facts: DeviceFacts, seed: int) -> DeviceProfile:
    """Raises ConfigError where a setup was visited at too few states: the budget was too small."""
    samples = _samples(visits, setups, seed)
    shares = _fit_shares(samples)
    alone = DeviceProfile(
        name=facts.name,
        source=facts.source,
        units=facts.units,
        granularity=facts.granularity,
        num_layers=facts.num_layers,
        shares=shares,
        noise=noise_of(visits),
        kind="measured",
        model=facts.model,
        dtype=facts.dtype,
        kv_tokens=facts.kv_tokens,
        versions=facts.versions,
        created=facts.created,
    )
    return with_contention(alone, samples)


def with_contention(alone: DeviceProfile, samples: list[Sample]) -> DeviceProfile:
    """The profile with contention factors from the samples, the samples themselves, and its errors on them."""
    profile = _replaced(alone, contention=_fit_contention(LatencyModel(alone), samples), samples=samples)
    model = LatencyModel(profile)
    errors = [
        error
        for phase in _PHASES
        for contended in (False, True)
        if (error := error_of(model, samples, phase, contended=contended)) is not None
    ]
    return _replaced(profile, errors=errors)


def fit_coefficients(
    phase: Phase, linear: Sequence[float], pairs: Sequence[float], seconds: Sequence[float]
) -> Coefficients:
    """None negative: (a, b, c) of `a * linear + b * pairs + c`, for prefill also d of `d * pairs / linear`."""
    measured = np.asarray(seconds, dtype=np.float64)
    terms = [np.asarray(linear, dtype=np.float64), np.asarray(pairs, dtype=np.float64), np.ones(len(measured))]
    if phase == "prefill":
        terms.append(np.divide(terms[1], terms[0], out=np.zeros(len(measured)), where=terms[0] > 0))
    rows = np.column_stack(terms) / measured[:, None]
    scale = np.linalg.norm(rows, axis=0)
    scale[scale == 0.0] = 1.0
    weights = np.ones(len(measured))
    for _ in range(_REWEIGHTINGS):
        roots = np.sqrt(weights)
        solution, _residual = nnls(rows / scale * roots[:, None], roots)
        errors = np.abs(rows / scale @ solution - 1.0)
        weights = np.minimum(1.0, _HUBER_S / np.maximum(errors, 1e-12))
    return Coefficients(*(float(value) for value in solution / scale))


def error_of(model: LatencyModel, samples: Iterable[Sample], phase: Phase, *, contended: bool) -> FitError | None:
    """Over held-out samples; None where there are none of this kind."""
    chosen = [s for s in samples if s.held_out and s.phase == phase and (s.peer_units > 0) == contended]
    if not chosen:
        return None
    errors = np.array([abs(predict(model, sample) / sample.seconds - 1.0) for sample in chosen])
    return FitError(
        phase=phase,
        contended=contended,
        num_samples=len(chosen),
        p50=float(np.quantile(errors, 0.5)),
        p95=float(np.quantile(errors, 0.95)),
        max=float(errors.max()),
        within_15_percent=float(np.mean(errors <= 0.15)),
    )


def predict(model: LatencyModel, sample: Sample) -> float:
    """Seconds that the model expects of a sample's state."""
    if sample.phase == "prefill":
        return model.prefill_s(sample.units, sample.linear, sample.pairs, sample.peer_units)
    return model.decode_s(sample.units, sample.linear, sample.pairs, sample.peer_units)


def typical_s(measured: Measured) -> float:
    """What one forward or step of a visit takes the device: the median. Where the worker waited for a core that other
    programs had, long forwards are all cut and the median with them, but the time waited is known: the mean without it.
    Some of that was waited before the first and after the last, so many short ones never take less than the quickest.
    On more than one core the others go on meanwhile, and how much is not known: the median it is.
    """
    median_s = float(np.median(measured.seconds))
    if measured.waited < _QUIET or measured.units > 1:
        return median_s
    least_s = min(measured.seconds) if len(measured.seconds) >= _MANY else median_s * _LEAST
    return max(least_s, min(median_s, measured.mean_s * (1.0 - measured.waited)))


def noise_of(visits: Iterable[Visit]) -> NoiseProfile:
    """From repeats of one phase alone, against the median of their visit: a robust sigma of the body, and the rare
    long ones beyond it."""
    logs = [
        np.log(np.asarray(each.seconds) / np.median(each.seconds))
        for visit in visits
        for each in visit.measured
        if each.peer_units == 0 and each.waited < _QUIET and len(each.seconds) >= 3
    ]
    if not logs:
        return NoiseProfile()
    residuals = np.concatenate(logs)
    sigma = 1.4826 * float(np.median(np.abs(residuals)))
    tail = residuals[residuals > max(_TAIL_SIGMAS * sigma, math.log(_TAIL_FACTOR))]
    return NoiseProfile(
        sigma=sigma,
        tail_probability=len(tail) / len(residuals),
        tail_factor=math.exp(float(np.median(tail))) if len(tail) else 1.0,
    )


def _samples(visits: Iterable[Visit], setups: Iterable[str], seed: int) -> list[Sample]:
    states: dict[tuple[str, int, Phase], _State] = {}
    for visit in visits:
        for each in visit.measured:
            key = (visit.setup, visit.state, each.phase)
            fresh = _State(visit.setup, visit.state, each.phase, each.units, each.peer_units)
            state = states.setdefault(key, fresh)
            state.linear.append(each.linear)
            state.pairs.append(each.pairs)
            state.medians.append(typical_s(each))
            state.foreign.append(visit.foreign)
    by_setup: dict[str, set[int]] = defaultdict(set)
    for state in states.values():
        by_setup[state.setup].add(state.index)
    for setup in setups:
        if len(by_setup[setup]) < MIN_STATES:
            problem = (
                f"was spent before {setup!r} was measured at {MIN_STATES} states (it was at {len(by_setup[setup])})"
            )
            raise ConfigError("budget", problem, "run it again with a larger --budget: it goes on from here")
    held_out = {setup: _held_out(setup, indices, seed) for setup, indices in by_setup.items()}
    for state in states.values():
        state.is_held_out = state.index in held_out[state.setup]
    return [states[key].sample() for key in sorted(states)]


def _held_out(setup: str, indices: set[int], seed: int) -> set[int]:
    return set(random.Random(f"held out/{seed}/{setup}").sample(sorted(indices), round(HELD_OUT * len(indices))))


def _fit_shares(samples: list[Sample]) -> list[ShareProfile]:
    """A share that only one phase was measured on takes the other's from the nearest share that has it."""
    fits: dict[Phase, dict[int, Coefficients]] = {phase: {} for phase in _PHASES}
    for phase in _PHASES:
        groups: dict[int, list[Sample]] = defaultdict(list)
        for sample in samples:
            if sample.phase == phase and sample.peer_units == 0 and not sample.held_out:
                groups[sample.units].append(sample)
        for units, group in groups.items():
            fits[phase][units] = fit_coefficients(
                phase, [s.linear for s in group], [s.pairs for s in group], [s.seconds for s in group]
            )
    return [
        ShareProfile(units, _nearest(fits["prefill"], units), _nearest(fits["decode"], units))
        for units in sorted({*fits["prefill"], *fits["decode"]})
    ]


def _nearest(fits: dict[int, Coefficients], units: int) -> Coefficients:
    return fits[min(fits, key=lambda known: (abs(known - units), known))]


def _fit_contention(model: LatencyModel, samples: list[Sample]) -> list[ContentionProfile]:
    """Median of measured over predicted-alone, in the logarithm. Nothing gets faster by company: at least 1."""
    ratios: dict[tuple[int, int], dict[Phase, list[float]]] = defaultdict(lambda: {phase: [] for phase in _PHASES})
    for sample in samples:
        if not sample.peer_units or sample.held_out:
            continue
        is_prefill = sample.phase == "prefill"
        pair = (sample.units, sample.peer_units) if is_prefill else (sample.peer_units, sample.units)
        if is_prefill:
            alone_s = model.prefill_s(sample.units, sample.linear, sample.pairs)
        else:
            alone_s = model.decode_s(sample.units, sample.linear, sample.pairs)
        ratios[pair][sample.phase].append(sample.seconds / alone_s)
    return [
        ContentionProfile(*pair, *(max(1.0, float(np.median(of_phase[phase] or [1.0]))) for phase in _PHASES))
        for pair, of_phase in sorted(ratios.items())
    ]


def _replaced(profile: DeviceProfile, **changes: object) -> DeviceProfile:
    return structs.replace(profile, **changes)
