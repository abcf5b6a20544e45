"""`colocate serve` on the emulated device, under a fake MPS daemon: `python -m tests.mps_serve serve ...`.

Supervisor, guard, daemon and workers are the real ones; only what decides that a device needs MPS is told so. Emulated
workers open no context, so a test connects in their names (`fake_mps.connect`).
"""

from __future__ import annotations

import os

from colocate.cli import main
from colocate.config.serve import ServeConfig
from colocate.device.cuda.mps import MpsManager, find_tools
from colocate.runtime import daemon
from colocate.runtime.gpu_guard import GpuGuard, MpsGuard


def _guard(config: ServeConfig, device_kind: str) -> GpuGuard:
    environ = {**os.environ, "COLOCATE_FAKE_CUDA": "1"}
    return MpsGuard(MpsManager(find_tools(environ), environ), keeper_is_client=False)


if __name__ == "__main__":
    daemon.gpu_guard_for = _guard
    main()
