"""An urgent short prompt in a real daemon goes between two layer slices of a long one."""

from __future__ import annotations

from tests.daemon import eventually, start_daemon
from tests.limits import LIMIT_S
from tests.streams import Stream, finished

PROFILE = ("--profile", "tests/data/layered_profile.yaml", "--no-prefix-caching")
CLASSES = ("--slo-class", "interactive: ttft 500 ms, tpot 200 ms", "--slo-class", "batch: none")


def test_it_ends_while_the_long_one_is_still_being_read() -> None:
    with start_daemon(*PROFILE, *CLASSES) as daemon:
        long = Stream(daemon, 1, prompt=list(range(300, 800)), max_tokens=5, slo_class="batch")
        eventually(lambda: daemon.state()["queue"]["prefill_running"], LIMIT_S, "the long prompt is under way")
        short = Stream(daemon, 2, prompt=[5, 6, 7], max_tokens=1, slo_class="interactive")
        assert len(finished(short)) == 1
        assert long.token_ids == [], "four seconds of reading are not over"
        assert len(finished(long)) == 5
        assert daemon.state()["set_aside"] == 1
