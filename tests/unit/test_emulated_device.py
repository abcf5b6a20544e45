"""The emulated device: faults, profiles, tokens and time."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from colocate.config.profile import DeviceProfile, load_profile
from colocate.device.emulated.faults import Fault, FaultInjector, InjectedFault, parse_fault
from colocate.device.emulated.partition import EmulatedPartition
from colocate.device.emulated.timing import PhaseTimer, pass_time
from colocate.device.emulated.tokens import TokenDraw, row_key
from colocate.errors import ConfigError
from colocate.messages.prefill import PrefillBatch, PrefillRow
from colocate.messages.sampling import SampleState, SamplingParams
from colocate.types import Role
from colocate.worker.emulated_executor import EmulatedDecodeExecutor, EmulatedHybridExecutor, EmulatedPrefillExecutor
from colocate.worker.executor import StandingRow

PROFILE = {
    "name": "test",
    "source": "made up",
    "units": 8,
    "granularity": 2,
    "num_layers": 2,
    "shares": [
        {"units": 2, "prefill": [4.0, 2.0, 8.0], "decode": [0.4, 4.0, 1.0]},
        {"units": 6, "prefill": [2.0, 1.0, 4.0], "decode": [0.2, 2.0, 1.0]},
    ],
    "contention": [{"prefill_units": 6, "decode_units": 2, "prefill": 1.5, "decode": 2.0}],
}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("decode:exit@step=100", Fault(Role.DECODE, "exit", "step", 100)),
        ("prefill:hang@batch=3", Fault(Role.PREFILL, "hang", "batch", 3)),
        ("decode:slow@step=50,ms=200", Fault(Role.DECODE, "slow", "step", 50, ms=200)),
        ("freeze@step=5,incarnation=1", Fault(None, "freeze", "step", 5, incarnation=1)),
        ("prefill:raise@token=13", Fault(Role.PREFILL, "raise", "token", 13)),
        ("exit@switch", Fault(None, "exit", "switch", None)),
        ("exit@switch=2", Fault(None, "exit", "switch", 2)),
    ],
)
def test_faults_are_read(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("decode:exit", "no @TRIGGER"),
        ("keeper:exit@step=1", "names no worker: 'keeper'"),
        ("decode:explode@step=1", "no known action: 'explode'"),
        ("decode:exit@noon", "no known trigger: 'noon'"),
        ("decode:exit@step", "needs a number: step=N"),
        ("decode:exit@step=ten", "step must be a whole number, not 'ten'"),
        ("decode:slow@step=1,ms=-4", "ms must be a whole number"),
        ("decode:exit@step=1,speed=3", "has no option 'speed'"),
        ("", "no @TRIGGER"),
    ],
)
def test_a_bad_fault_is_an_operator_error_that_quotes_it(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=r"device\.faults") as caught:
        parse_fault(text)
    assert says in str(caught.value) and repr(text) in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_a_fault_or_an_operator_error(text: str) -> None:
    try:
        parse_fault(text)
    except ConfigError:
        pass


def injector(*texts: str, role: Role = Role.DECODE, incarnation: int = 1) -> tuple[FaultInjector, list[object]]:
    junk: list[object] = []
    return FaultInjector([parse_fault(text) for text in texts], role, incarnation, junk.append), junk


def test_a_fault_fires_for_its_role_its_incarnation_and_its_number() -> None:
    faults, _ = injector("decode:raise@step=3,incarnation=1")
    faults.before_work(Role.DECODE)
    faults.before_work(Role.DECODE)
    with pytest.raises(InjectedFault):
        faults.before_work(Role.DECODE)
    faults.before_work(Role.DECODE)
    for role, incarnation in ((Role.DECODE, 2), (Role.PREFILL, 1)):
        other, _ = injector("decode:raise@step=3,incarnation=1", role=role, incarnation=incarnation)
        for _ in range(5):
            other.before_work(role)


def test_a_hybrid_worker_takes_the_faults_of_both_phases_in_their_phase() -> None:
    faults, _ = injector("decode:raise@step=2", "prefill:raise@batch=3", "prefill:raise@token=7", role=Role.HYBRID)
    faults.before_work(Role.DECODE)
    faults.before_work(Role.PREFILL)
    faults.before_work(Role.PREFILL)
    with pytest.raises(InjectedFault, match="step=2"):
        faults.before_work(Role.DECODE)
    with pytest.raises(InjectedFault, match="batch=3"):
        faults.before_work(Role.PREFILL)
    faults.before_work(Role.DECODE, {7})
    with pytest.raises(InjectedFault, match="token=7"):
        faults.before_work(Role.PREFILL, {7})


def test_a_fault_of_the_hybrid_worker_strikes_in_either_phase_and_no_other_worker() -> None:
    for phase in (Role.PREFILL, Role.DECODE):
        faults, _ = injector("hybrid:raise@token=7", role=Role.HYBRID)
        with pytest.raises(InjectedFault):
            faults.before_work(phase, {7})
        other, _ = injector("hybrid:raise@token=7", role=phase)
        other.before_work(phase, {7})


def test_the_first_share_is_not_a_switch() -> None:
    faults, _ = injector("raise@switch")
    faults.during_switch()
    with pytest.raises(InjectedFault):
        faults.during_switch()


def test_garbage_puts_junk_on_the_wire_once() -> None:
    faults, junk = injector("garbage@step=2")
    for _ in range(5):
        faults.before_work(Role.DECODE)
    assert len(junk) == 4


def test_slow_takes_its_time() -> None:
    faults, _ = injector("slow@step=1,ms=30")
    started = time.perf_counter()
    faults.before_work(Role.DECODE)
    assert time.perf_counter() - started >= 0.03


def write_profile(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump({**PROFILE, **changes}))
    return path


def test_device_time_follows_the_formula_and_contention(tmp_path: Path) -> None:
    profile = load_profile(write_profile(tmp_path))
    peer_units = 0
    prefill = PhaseTimer("prefill", profile, lambda: peer_units)
    prefill.units_changed(6)
    # two rows of (new, cached): (10, 0) and (4, 6); two layers
    forward_s = 2.0 * 14 + 1.0 * (10 * 5 + 4 * 8) + 4.0
    assert prefill.prefill_slice_s([(10, 0), (4, 6)]) == pytest.approx(forward_s / 2)
    peer_units = 2
    assert prefill.prefill_slice_s([(10, 0), (4, 6)]) == pytest.approx(1.5 * forward_s / 2)
    decode = PhaseTimer("decode", profile, lambda: 6)
    decode.units_changed(2)
    assert decode.decode_step_s(sum_context=100, num_rows=3) == pytest.approx(2.0 * (0.4 * 100 + 4.0 * 3 + 1.0))


def test_a_hybrid_forward_takes_the_time_of_both_parts_together(tmp_path: Path) -> None:
    shares = [{"units": 8, "prefill": [0.0, 0.0, 0.03], "decode": [0.0, 0.02, 0.0]}]
    timer = PhaseTimer("hybrid", load_profile(write_profile(tmp_path, shares=shares, contention=[])), lambda: 0)
    timer.units_changed(8)
    draw, (faults, _) = TokenDraw(4096), injector(role=Role.HYBRID)
    prefill = EmulatedPrefillExecutor(draw, timer, faults, frozenset())
    executor = EmulatedHybridExecutor(prefill, EmulatedDecodeExecutor(draw, timer, faults), timer)
    state = SampleState(SamplingParams(max_tokens=9), 1)
    rows = [StandingRow(index, 1, 5, 10, [index], state, 1) for index in range(2)]
    batch = PrefillBatch(1, [PrefillRow(7, 1, [1, 2, 3], 0, [9], SampleState(SamplingParams(max_tokens=9), 0))])
    for chunk, standing, least_s in ((batch, [], 0.03), (None, rows, 0.04), (batch, rows, 0.04)):
        started = time.perf_counter()
        result = executor.step(chunk, standing, len(standing))
        assert time.perf_counter() - started >= least_s
        assert (result.tokens is None, len(result.done)) == (not standing, chunk is not None)


def test_noise_is_seeded_and_has_a_tail(tmp_path: Path) -> None:
    noise = {"seed": 4, "sigma": 0.1, "tail_probability": 0.1, "tail_factor": 10.0}
    profile = load_profile(write_profile(tmp_path, noise=noise))

    def draws(profile: DeviceProfile) -> list[float]:
        timer = PhaseTimer("decode", profile, lambda: 0)
        timer.units_changed(6)
        return [timer.decode_step_s(0, 1) / 3.0 for _ in range(2000)]

    factors = draws(profile)
    assert factors == draws(profile)
    assert 0.05 < sum(factor > 5 for factor in factors) / 2000 < 0.15
    assert 0.98 < sorted(factor for factor in factors if factor < 5)[900] < 1.02


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"units": 0}, "units"),
        ({"shares": []}, "shares"),
        ({"colour": "red"}, "colour"),
        ({"shares": [{"units": 2, "prefill": [1, -1, 1], "decode": [1, 1, 1]}]}, r"shares\[0\]\.prefill\[1\]"),
        ({"shares": [{"units": 9, "prefill": [1, 1, 1], "decode": [1, 1, 1]}]}, "9 units of a device that has 8"),
        ({"shares": [PROFILE["shares"][1], PROFILE["shares"][0]]}, "ascend"),  # type: ignore[index]
        ({"contention": [{"prefill_units": 2, "decode_units": 2, "prefill": 0.5}]}, "contention"),
    ],
)
def test_a_bad_profile_names_file_and_key(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    path = write_profile(tmp_path, **changes)
    with pytest.raises(ConfigError, match=says) as caught:
        load_profile(path)
    assert str(path) in str(caught.value)


def test_a_missing_profile_and_one_that_is_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_profile(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not a device profile"):
        load_profile(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not a device profile"):
        load_profile(tmp_path / "list.yaml")


def test_tokens_stay_in_the_vocabulary_avoid_what_is_reserved_and_spread() -> None:
    draw = TokenDraw(1000, reserved={700})
    tokens = [
        draw.token(row_key(seed, choice), position) for seed in range(40) for choice in (0, 1) for position in range(40)
    ]
    assert min(tokens) >= 300 and max(tokens) < 1000 and 700 not in tokens
    assert Counter(tokens).most_common(1)[0][1] < 25, "about 4.6 expected of each"
    assert len(set(tokens)) > 600


@given(st.integers(1, 300_000))
def test_any_vocabulary_works(vocab_size: int) -> None:
    token = TokenDraw(vocab_size).token(row_key(1, 0), 5, (0,) if vocab_size > 2 else ())
    assert 0 <= token < vocab_size


def test_eos_comes_as_often_as_asked() -> None:
    draw = TokenDraw(4096, eos_probability=0.1)
    drawn = [draw.token(row_key(seed, 0), position, (2, 3)) for seed in range(50) for position in range(40)]
    assert 0.07 < drawn.count(2) / 2000 < 0.13


def test_time_passes_precisely() -> None:
    late: list[float] = []
    # Never early; and not late by itself, which shows as soon as a busy machine lets it wake when it asked to.
    while len(late) < 40 or (min(late) >= 0.0005 and len(late) < 4000):
        started = time.perf_counter()
        pass_time(0.002, started)
        late.append(time.perf_counter() - started - 0.002)
        assert late[-1] >= 0
    assert min(late) < 0.0005


def test_the_partition_remembers_and_refuses_units_that_are_not_there() -> None:
    partition = EmulatedPartition(4)
    partition.apply((2, 3))
    assert (partition.total_units, partition.realised()) == (4, (2, 3))
    with pytest.raises(ConfigError):
        partition.apply((3, 4))
    partition.apply(())
    assert partition.realised() == ()
