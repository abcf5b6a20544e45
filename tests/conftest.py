"""What holds for every test: none may fail because the machine is slow, or because of how the tests were started."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# Hypothesis fails an example that takes 200 ms, and a strategy that draws slowly; a busy machine does both.
settings.register_profile("any-machine", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")

# A shell that starts the tests in the background has them ignore Ctrl-C, and every program they start would inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
