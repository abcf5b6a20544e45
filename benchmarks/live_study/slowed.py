"""The same device, load and promise in slow motion.

An emulated device at its own speed asks more of two cores than they have: hundreds of tokens per step pass the workers,
the engine, the frontend and the client. With every device time and every target `slow` times as long and arrivals
`slow` times as rare, the device is as busy as before and the host `slow` times less.

    python benchmarks/live_study/slowed.py configs/profiles/emulated-h200-roofline.yaml 2 profiles/h200-slow2.json

writes such a profile; rates and targets are for whoever serves with it to change.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
from msgspec.structs import astuple, replace

from colocate.config.profile import Coefficients, DeviceProfile, ShareProfile, load_profile
from colocate.config.slo import SloClass
from colocate.workload.rows import Workload
from colocate.workload.scale import at_speed


def slowed_profile(profile: DeviceProfile, slow: float) -> DeviceProfile:
    """Every coefficient times `slow`. Contention and noise are ratios and stay."""
    shares = [
        ShareProfile(share.units, _times(share.prefill, slow), _times(share.decode, slow)) for share in profile.shares
    ]
    source = f"{profile.source}; {slow:g} times as slow"
    return replace(profile, shares=shares, source=source, samples=[], errors=[])


def slowed_workload(workload: Workload, slow: float) -> Workload:
    return at_speed(workload, 1 / slow)


def slowed_slo(slo: SloClass, slow: float) -> SloClass:
    targets = {name: seconds * slow for name, seconds in targets_of(slo).items()}
    return replace(slo, **{f"{name}_s": seconds for name, seconds in targets.items()})


def targets_of(slo: SloClass) -> dict[str, float]:
    """What the class promises, in seconds, by the names that `--slo-class` has for them."""
    named = {"ttft": slo.ttft_s, "tpot": slo.tpot_s, "ttft_per_token": slo.ttft_per_token_s, "itl": slo.itl_s}
    return {name: seconds for name, seconds in named.items() if seconds is not None}


def _times(k: Coefficients, factor: float) -> Coefficients:
    return Coefficients(*(value * factor for value in astuple(k)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=Path)
    parser.add_argument("slow", type=float, metavar="TIMES")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(msgspec.json.encode(slowed_profile(load_profile(options.profile), options.slow)) + b"\n")


if __name__ == "__main__":
    main()
