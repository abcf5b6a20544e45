"""A real frontend (uvicorn on a loopback port, real control socket, ZMQ to the engine) in a thread of the test."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from colocate.config.serve import (
    HttpSection,
    ModelConfigSection,
    SchedulerSection,
    ServeConfig,
    SupervisorSection,
)
from colocate.config.slo import SloClass, slo_classes
from colocate.frontend.main import run_frontend
from colocate.messages.control import ChildReady, EngineAt, ProcessInfo, ProcessTable, Shutdown
from colocate.messages.spec import ProcessSpec, RuntimeFacts
from colocate.transport.control import ControlChannel, ControlMessage
from colocate.types import Role
from tests.byte_tokenizer import VOCAB_SIZE
from tests.limits import LIMIT_S
from tests.scripted_engine import Script, ScriptedEngine

MODEL = "tiny"


def process_table(phase: str = "ready", engine: str = "ready") -> ProcessTable:
    states = {Role.ENGINE: engine}
    processes = [
        ProcessInfo(role, 1000 + index, states.get(role, "ready"), 1, 0, 12.5)
        for index, role in enumerate((Role.KEEPER, Role.ENGINE, Role.PREFILL, Role.DECODE, Role.FRONTEND))
    ]
    return ProcessTable(phase, processes, {"weights": 0.5})


@dataclass
class RunningFrontend:
    port: int
    control: ControlChannel
    engine: ScriptedEngine
    spec: ProcessSpec
    _thread: threading.Thread
    _seen: list[ControlMessage] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def script(self) -> Script:
        return self.engine.script

    def wait_for(self, kind: type, limit_s: float = LIMIT_S) -> ControlMessage:
        """The next message of this kind on the control channel."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            message = self.control.recv()
            if isinstance(message, kind):
                return message
            if message is None:
                time.sleep(0.002)
        raise TimeoutError(f"no {kind.__name__} within {limit_s} s")

    def replace_engine(self, script: Script | None = None) -> ScriptedEngine:
        """A new engine epoch at a new address, as the supervisor would announce it."""
        self.engine.stop()
        self.engine = _engine(script or self.engine.script, self.spec.config.scheduler)
        self.control.send(EngineAt(self.spec.epoch + 1, self.engine.address))
        return self.engine

    def stop(self) -> None:
        try:
            self.control.send(Shutdown())
        finally:
            self._thread.join(LIMIT_S)
            self.engine.stop()
            self.control.close()
        assert not self._thread.is_alive(), "the frontend did not stop"


def new_address() -> str:
    return f"ipc://@colocate-test-{secrets.token_hex(6)}"


def start_frontend(
    model_dir: Path,
    http: HttpSection | None = None,
    script: Script | None = None,
    *,
    ready: bool = True,
    max_model_len: int = 512,
    start_timeout_s: float = 300.0,
    scheduler: SchedulerSection | None = None,
) -> RunningFrontend:
    listener = socket.create_server(("127.0.0.1", 0))
    scheduler = scheduler or SchedulerSection()
    engine = _engine(script or Script(), scheduler)
    ours, theirs = ControlChannel.pair()
    http = http or HttpSection()
    port = listener.getsockname()[1]
    spec = ProcessSpec(
        role=Role.FRONTEND,
        incarnation=1,
        epoch=1,
        run_id="test",
        config=ServeConfig(
            model=ModelConfigSection(model=str(model_dir)),
            scheduler=scheduler,
            http=replace(http, port=port),
            supervisor=SupervisorSection(start_timeout_s=start_timeout_s),
        ),
        facts=facts_for(model_dir, max_model_len),
        control_fd=-1,
        board_fd=-1,
        bell_fds=(),
        engine_address=engine.address,
        listen_fd=listener.detach(),
    )
    thread = threading.Thread(target=run_frontend, args=(spec, theirs, None), name="frontend", daemon=True)
    thread.start()
    frontend = RunningFrontend(port, ours, engine, spec, thread)
    frontend.wait_for(ChildReady)
    if ready:
        ours.send(process_table())
    return frontend


def _engine(script: Script, scheduler: SchedulerSection) -> ScriptedEngine:
    classes: dict[str, SloClass] = {known.name: known for known in slo_classes(scheduler)}
    return ScriptedEngine(new_address(), script, slo_classes=classes).start()


def facts_for(model_dir: Path, max_model_len: int) -> RuntimeFacts:
    return RuntimeFacts(
        device_kind="cpu",
        device_name="test",
        total_units=3,
        unit_granularity=1,
        unit_ids=(0, 1, 2),
        model_name=MODEL,
        model_dir=str(model_dir),
        dtype="float32",
        vocab_size=VOCAB_SIZE,
        max_model_len=max_model_len,
        num_blocks=100,
        block_size=16,
    )


def wait_until(condition: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)
