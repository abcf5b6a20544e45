"""What the checks say together: can prefill and decode be co-located on this GPU?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from colocate.device.cuda.proof.check import Check, Status
from colocate.device.cuda.proof.concurrency import THREADS_CONCURRENT


@dataclass(frozen=True, slots=True)
class Verdict:
    """`two_processes`: True proven, False refuted, None not proven here. `one_process` likewise, for
    --single-process. `reasons` are the necessary checks that failed, or were left out."""

    two_processes: bool | None
    one_process: bool | None
    reasons: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        return {
            "two_processes": self.two_processes,
            "one_process": self.one_process,
            "reasons": list(self.reasons),
        }


def judge(checks: Sequence[Check]) -> Verdict:
    """Proven when every necessary check passed; one that failed refutes."""
    failed = [check.name for check in checks if check.is_necessary and check.status is Status.FAIL]
    # The fake device and a machine without NVML have no modes to look at; every proof goes without.
    left_out = [
        check.name
        for check in checks
        if check.is_necessary and check.status is Status.UNTESTABLE and check.name != "gpu_mode"
    ]
    two = False if failed else None if left_out else True
    threads = next((check.status for check in checks if check.name == THREADS_CONCURRENT.name), Status.UNTESTABLE)
    one = {Status.PASS: True, Status.FAIL: False, Status.UNTESTABLE: None}[threads]
    return Verdict(two, one, tuple(failed or left_out))
