"""What a change of plan and a hand-over cost, and whether a graph keeps to its share."""

from __future__ import annotations

from collections.abc import Sequence

from colocate.device.cuda.proof.check import Check, CheckSpec, Group
from colocate.device.cuda.proof.commands import HandedOver, HandOver, Replayed, ReplayGraph, Switch, Switched
from colocate.device.cuda.proof.crew import DECODE, Crew

GRAPH = CheckSpec("graph", "a replayed CUDA graph stays in its partition", Group.ONE_PROCESS)
SWITCH = CheckSpec("switch", "cost of a switch, on the host and on the device", Group.ONE_PROCESS)
HAND_OVER = CheckSpec("hand_over", "hand-over from prefill to decode", Group.TWO_PROCESSES)

# Half of all switches and hand-overs must be this quick, or plans do not follow the load within milliseconds. The
# figures to reach are stricter (docs/doctor.md); they are reported, not required.
MOST_HOST_US = 200.0
MOST_DEVICE_US = 5_000.0
MOST_HAND_OVER_US = 5_000.0
_HOST_ROUNDS = 1000
_DEVICE_ROUNDS = 200
_HAND_OVER_ROUNDS = 200


def check_graph(crew: Crew, share: int, other: int) -> Check:
    """Captured on one share, replayed there and while another lane of the process is in use."""
    decode = crew.worker(DECODE)
    return judge_graph(share, decode.ask(ReplayGraph(share, other), Replayed, crew.limits.answer_s))


def judge_graph(share: int, replayed: Replayed) -> Check:
    own = set(replayed.eager)
    data: dict[str, object] = {
        "share": share,
        "eager": replayed.eager,
        "replayed": replayed.replayed,
        "replayed_elsewhere": replayed.replayed_elsewhere,
    }
    for where, sms in (("on its own lane", replayed.replayed), ("from another lane", replayed.replayed_elsewhere)):
        outside = sorted(set(sms) - own)
        if outside or not sms:
            detail = f"replayed {where} it ran on SM {outside}, outside its share of {share}" if sms else "it never ran"
            remedy = "serve with --enforce-eager, and report this output: graphs do not keep to partitions here"
            return GRAPH.failed(detail, remedy, **data)
    return GRAPH.passed(f"{len(own)} SMs, replayed twice", **data)


def check_switch(crew: Crew, first: int, second: int) -> Check:
    decode = crew.worker(DECODE)
    command = Switch(first, second, _HOST_ROUNDS, _DEVICE_ROUNDS)
    return judge_switch(decode.ask(command, Switched, crew.limits.answer_s))


def judge_switch(switched: Switched) -> Check:
    host, device = _microseconds(switched.host_ns), _microseconds(switched.device_ns)
    detail = (
        f"host p50 {host['p50']:.1f} p99 {host['p99']:.1f} us of {len(switched.host_ns)}; device p50 "
        f"{device['p50']:.1f} p99 {device['p99']:.1f} us of {len(switched.device_ns)}"
    )
    data: dict[str, object] = {"host_us": host, "device_us": device, "wrong": switched.wrong}
    if switched.wrong:
        remedy = "report this output: a switch took no effect"
        return SWITCH.failed(f"{switched.wrong} times work ran outside the share just chosen; {detail}", remedy, **data)
    if host["p50"] > MOST_HOST_US or device["p50"] > MOST_DEVICE_US:
        remedy = "give the workers cores of their own, and end what else uses the GPU"
        return SWITCH.failed(f"too slow to follow the load: {detail}", remedy, **data)
    return SWITCH.passed(detail, **data)


def check_hand_over(crew: Crew, prefill_sms: int, decode_sms: int) -> Check:
    """From the end of prefill's work to the begin of decode's, through both hosts: an event that is polled, a message,
    a launch."""
    prefill, decode = crew.both()
    limit_s = crew.limits.answer_s
    decode.begin(HandOver(False, decode_sms, _HAND_OVER_ROUNDS))
    prefill.begin(HandOver(True, prefill_sms, _HAND_OVER_ROUNDS))
    ends = prefill.finish(HandedOver, limit_s).times_ns
    begins = decode.finish(HandedOver, limit_s).times_ns
    return judge_hand_over(ends, begins)


def judge_hand_over(ends_ns: list[int], begins_ns: list[int]) -> Check:
    gaps_ns = [begin - end for end, begin in zip(ends_ns, begins_ns, strict=True)]
    figures = _microseconds(gaps_ns)
    detail = f"p50 {figures['p50']:.0f} p99 {figures['p99']:.0f} us of {len(gaps_ns)}, no byte copied"
    if figures["min"] < 0:
        problem = f"decode began {-figures['min']:.0f} us before prefill had ended"
        return HAND_OVER.failed(problem, "report this output: the processes do not read one clock", us=figures)
    if figures["p50"] > MOST_HAND_OVER_US:
        remedy = "give the workers cores of their own, and end what else uses the GPU"
        return HAND_OVER.failed(f"too slow: {detail}", remedy, us=figures)
    return HAND_OVER.passed(detail, us=figures)


def _microseconds(times_ns: Sequence[int]) -> dict[str, float]:
    """Nearest-rank percentiles."""
    ordered = sorted(times_ns)

    def rank(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e3

    return {"min": rank(0.0), "p50": rank(0.5), "p90": rank(0.9), "p99": rank(0.99), "max": rank(1.0)}
