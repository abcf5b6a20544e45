"""Every check of the doctor can pass and can fail: the judgements alone, on reports made up for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from colocate.core.plan import Plan
from colocate.device.cuda.nvrtc import cubin_of
from colocate.device.cuda.proof import concurrency, environment, kept_memory, sharing, switching
from colocate.device.cuda.proof.check import Check, CheckSpec, Group, Status
from colocate.device.cuda.proof.commands import Armed, Opened, Replayed, SmSet, Span, Switched, Wrong
from colocate.device.cuda.proof.found import Found, MpsFound, NvmlFacts
from colocate.device.cuda.proof.run import CATALOGUE, nothing_testable
from colocate.device.cuda.proof.verdict import judge
from colocate.errors import ConfigError

H200 = NvmlFacts("580.159", "NVIDIA H200", "GPU-1", 150 << 30, "default", "off")
PACKAGES = {"cuda-bindings": "13.0.3", "nvidia-cuda-nvrtc": "13.0.88", "triton": "3.6.0", "torch": "2.11.0"}
GOOD = Found(False, 13000, H200, "", PACKAGES, "13.0", MpsFound(("/usr/bin/nvidia-cuda-mps-control",), "MPS 1"))
OPENED = Opened("GPU", "GPU-1", 13000, (9, 0), 132, 8, 8, 8, 1 << 37, 1 << 37, True, False, [8] * 16 + [4])


def fails_with(check: Check, *words: str) -> None:
    assert check.status is Status.FAIL, check
    assert check.remedy, "a failure names its remedy"
    for word in words:
        assert word in check.detail


def test_a_complete_machine_passes_every_look() -> None:
    assert {check.status for check in environment.check_environment(GOOD)} == {Status.PASS}


@pytest.mark.parametrize(
    ("check", "found", "word"),
    [
        (environment.check_driver, replace(GOOD, api_version=0), "libcuda"),
        (environment.check_driver, replace(GOOD, api_version=12030), "12.3"),
        (environment.check_driver, replace(GOOD, api_version=12080), "12.8"),  # torch is built for 13
        (environment.check_packages, replace(GOOD, packages={"torch": "2.11.0"}), "triton"),
        (environment.check_packages, replace(GOOD, torch_cuda=""), "without CUDA"),
        (environment.check_gpu_mode, replace(GOOD, nvml=replace(H200, compute_mode="prohibited")), "prohibited"),
        (environment.check_mps_installed, replace(GOOD, mps=MpsFound(problem=ConfigError("mps", "gone", "x"))), "gone"),
        (environment.check_variables, replace(GOOD, variables_problem=ConfigError("V", "is 50", "unset")), "V is 50"),
        (environment.check_variables, replace(GOOD, variables={"CUDA_LAUNCH_BLOCKING": "1"}), "CUDA_LAUNCH_BLOCKING"),
    ],
)
def test_each_look_can_fail(check: object, found: Found, word: str) -> None:
    assert callable(check)
    fails_with(check(found), word)


def test_an_older_minor_version_of_the_same_cuda_is_enough_for_torch() -> None:
    assert environment.check_driver(replace(GOOD, torch_cuda="13.2")).status is Status.PASS


def test_without_nvml_the_modes_are_not_testable() -> None:
    check = environment.check_gpu_mode(replace(GOOD, nvml=None, nvml_problem="no library"))
    assert check.status is Status.UNTESTABLE and "no library" in check.detail


def test_a_device_of_one_atom_cannot_be_divided() -> None:
    assert sharing.check_device(OPENED).status is Status.PASS
    small = Opened("GPU", "GPU-1", 13000, (9, 0), 12, 8, 8, 8, 1 << 37, 1 << 37, True, False, [8, 4])
    fails_with(sharing.check_device(small), "nothing to divide")
    lossy = Opened("GPU", "GPU-1", 13000, (9, 0), 132, 8, 8, 8, 1 << 37, 1 << 37, True, False, [8] * 16)
    fails_with(sharing.check_device(lossy), "hold 128")


def test_a_share_that_came_out_smaller_fails() -> None:
    assert sharing.check_armed([16, 24], Armed([16, 24], 0.1, 0)).status is Status.PASS
    fails_with(sharing.check_armed([16, 24], Armed([16, 22], 0.1, 0)), "24 SMs got 22")


def _sets(*sms: list[int]) -> list[SmSet]:
    return [SmSet(len(each), len(each), each) for each in sms]


def test_atoms_must_be_the_same_and_whole_and_apart() -> None:
    good = _sets([0, 1], [2, 3], [4])
    assert sharing.judge_atoms(good, good, 5).status is Status.PASS
    fails_with(sharing.judge_atoms(good, _sets([2, 3], [0, 1], [4]), 5), "atom 0")
    fails_with(sharing.judge_atoms(good, good[:2], 5), "3 atoms in one process, 2")
    short = [SmSet(2, 2, [0]), *good[1:]]
    fails_with(sharing.judge_atoms(short, short, 5), "promises 2 SMs")
    double = _sets([0, 1], [1, 2])
    fails_with(sharing.judge_atoms(double, double, 5), "overlap")


def test_shares_must_be_disjoint_and_full() -> None:
    plan = Plan("p3d2", 3, 2)
    sets = {"prefill": {3: _sets([2, 3, 4])[0]}, "decode": {2: _sets([0, 1])[0]}}
    assert sharing.judge_disjoint(sets, [plan]).status is Status.PASS
    overlapping = {**sets, "decode": {2: _sets([1, 2])[0]}}
    fails_with(sharing.judge_disjoint(overlapping, [plan]), "p3d2", "SM 2")
    short = {**sets, "decode": {2: SmSet(2, 2, [0])}}
    fails_with(sharing.judge_disjoint(short, [plan]), "ran on 1 SMs")


def _together(a: tuple[int, int], b: tuple[int, int]) -> concurrency.Together:
    return concurrency.Together(100, 100, Span(*a), Span(*b))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 100), (0, 100), 1.0),
        ((0, 100), (40, 140), 1.0),  # a late start is not the device's doing
        ((0, 200), (0, 200), 0.0),  # slice by slice
        ((0, 100), (0, 200), 0.0),  # one after the other
        ((0, 110), (0, 110), 1 - 20 / 110),
    ],
)
def test_concurrency_is_1_alone_and_0_in_turns(a: tuple[int, int], b: tuple[int, int], expected: float) -> None:
    assert _together(a, b).concurrency == pytest.approx(expected)


def test_the_worst_split_decides_and_runs_that_missed_each_other_do_not_count() -> None:
    good, sliced, missed = _together((0, 100), (0, 100)), _together((0, 200), (0, 200)), _together((0, 100), (90, 190))
    assert not missed.overlaps_enough

    def check(**runs: list[concurrency.Together]) -> Check:
        return concurrency.judge(concurrency.CONCURRENT, runs, "install MPS")

    assert check(a=[missed, good]).status is Status.PASS
    fails_with(check(a=[good], b=[sliced]), "b: 0.00")
    fails_with(check(a=[missed]), "a: 0.00")


def test_measuring_asks_again_until_three_runs_overlap() -> None:
    missed, met = [Span(0, 100), Span(90, 190)], [Span(0, 100), Span(0, 100)]
    pairs = iter([missed, met, missed, met, met, met])

    def alone(_rounds: int) -> list[Span]:
        return [Span(0, 100)]

    runs = concurrency.measure(alone, alone, lambda rounds: next(pairs))
    assert [run.overlaps_enough for run in runs] == [False, True, False, True, True]
    never = concurrency.measure(alone, alone, lambda rounds: missed)
    assert len(never) < 20, "it gives up"


def test_a_graph_must_run_inside_its_share() -> None:
    assert switching.judge_graph(2, Replayed([0, 1], [0, 1], [1])).status is Status.PASS
    fails_with(switching.judge_graph(2, Replayed([0, 1], [0, 7], [0, 1])), "on its own lane", "7")
    fails_with(switching.judge_graph(2, Replayed([0, 1], [0, 1], [7])), "another lane", "7")
    fails_with(switching.judge_graph(2, Replayed([0, 1], [], [0, 1])), "never ran")


def test_a_switch_must_take_effect_and_be_quick() -> None:
    assert switching.judge_switch(Switched([5_000] * 9, [9_000] * 9, 0)).status is Status.PASS
    fails_with(switching.judge_switch(Switched([5_000] * 9, [9_000] * 9, 1)), "1 times")
    fails_with(switching.judge_switch(Switched([5_000_000] * 9, [9_000] * 9, 0)), "too slow")
    fails_with(switching.judge_switch(Switched([5_000] * 9, [90_000_000] * 9, 0)), "too slow")


def test_a_hand_over_must_come_after_and_soon() -> None:
    assert switching.judge_hand_over([0, 1000], [200_000, 201_000]).status is Status.PASS
    fails_with(switching.judge_hand_over([5000], [0]), "before prefill")
    fails_with(switching.judge_hand_over([0], [80_000_000]), "too slow")


def test_lost_words_fail_the_memory_checks() -> None:
    fine, lost = Wrong(0, 100), Wrong(7, 100)
    assert kept_memory.judge_worker_killed(400, fine, fine, 1.0).status is Status.PASS
    fails_with(kept_memory.judge_worker_killed(400, lost, fine, 1.0), "7 of 100")
    fails_with(kept_memory.judge_worker_killed(400, fine, lost, 1.0), "7 of 100")
    assert kept_memory.judge_keeper_killed(400, fine).status is Status.PASS
    fails_with(kept_memory.judge_keeper_killed(400, lost), "7 of 100")


NEEDED = CheckSpec("needed", "needed", Group.TWO_PROCESSES)
WELCOME = CheckSpec("welcome", "welcome", Group.TWO_PROCESSES, is_necessary=False)


def test_the_verdict_is_proven_refuted_or_open() -> None:
    assert judge([NEEDED.passed(""), WELCOME.failed("", "x")]).two_processes is True
    refuted = judge([NEEDED.failed("", "x"), environment.DRIVER.untestable("")])
    assert refuted.two_processes is False and refuted.reasons == ("needed",)
    assert judge([NEEDED.untestable("why")]).two_processes is None
    assert judge(nothing_testable("no GPU")).two_processes is None
    threads = concurrency.THREADS_CONCURRENT
    assert judge([NEEDED.failed("", "x"), threads.passed("")]).one_process is True


def test_the_probes_compile_for_an_h200() -> None:
    assert b"burn" in cubin_of("burn", (9, 0)) and b"smid_probe" in cubin_of("smid", (9, 0))


def test_names_of_checks_are_unique() -> None:
    assert len({spec.name for spec in CATALOGUE}) == len(CATALOGUE)
