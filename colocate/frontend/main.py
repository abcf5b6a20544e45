"""The frontend process: composes the HTTP application, serves it on the inherited socket, follows the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path

import structlog
import uvicorn
import uvloop

from colocate.config.slo import slo_classes
from colocate.errors import ChannelClosed, RequestError
from colocate.frontend.app import Api, build_app
from colocate.frontend.control import ControlCalls
from colocate.frontend.engine_client import EngineClient
from colocate.frontend.generate_calls import GenerateCalls
from colocate.frontend.http_protocol import http_protocol
from colocate.frontend.logs import configure_logs
from colocate.frontend.measures import RequestMeasures
from colocate.frontend.metrics import ColocateCollector, build_registry
from colocate.frontend.prompts import PromptReader
from colocate.frontend.slo import SloTable
from colocate.frontend.status import DaemonStatus
from colocate.frontend.text_workers import TextWorkers
from colocate.frontend.tokenizer import load_tokenizer
from colocate.frontend.vllm_metrics import VllmCollector
from colocate.messages.control import (
    ChannelBroken,
    ChildReady,
    Drain,
    Drained,
    EngineAt,
    ProcessTable,
    Shutdown,
    StartupPhase,
)
from colocate.messages.spec import ProcessSpec
from colocate.transport.board import Board
from colocate.transport.control import ControlChannel
from colocate.transport.zmq_channel import connect_to_engine
from colocate.types import Role

HEARTBEAT_S = 0.25

_log = structlog.get_logger("colocate.frontend")


def run_frontend(spec: ProcessSpec, control: ControlChannel, board: Board | None) -> None:
    """Serves until `Shutdown` or the end of the control channel. Raises ConfigError where the model's tokenizer or chat
    template is unusable."""
    started_s = time.monotonic()
    configure_logs(spec.config.telemetry)
    control.send(StartupPhase("tokenizer"))
    tokenizer, files = load_tokenizer(Path(spec.facts.model_dir), spec.facts.vocab_size)
    workers = TextWorkers()
    reader = PromptReader(tokenizer, files, workers, spec.facts.max_model_len)
    control.send(StartupPhase("http"))
    if threading.current_thread() is threading.main_thread():
        # Ctrl-C reaches the whole process group; how to stop is the supervisor's to say
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        gc.collect()
        gc.freeze()  # what lives from here on is small: collections stay short
    frontend = Frontend(spec, control, board, reader, workers, started_s)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(frontend.run())
    finally:
        workers.close()


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers, and with word of when it accepts connections."""

    def __init__(self, config: uvicorn.Config, accepting: Callable[[], None]) -> None:
        super().__init__(config)
        self._accepting = accepting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._accepting()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class Frontend:
    """The composed process. Owns the server, the engine client and the status; reads the control channel."""

    def __init__(
        self,
        spec: ProcessSpec,
        control: ControlChannel,
        board: Board | None,
        reader: PromptReader,
        workers: TextWorkers,
        started_s: float,
    ) -> None:
        config, facts = spec.config, spec.facts
        self._spec = spec
        self._started_s = started_s
        self._control = control
        self._board = board
        self._status = DaemonStatus()
        measures = RequestMeasures()
        slo = SloTable(slo_classes(config.scheduler), config.scheduler.default_slo_class)
        # The engine bounds its own queue; this bounds what waits here while there is no engine.
        max_in_flight = 512 + 2 * (config.scheduler.max_queue + config.scheduler.max_num_seqs)
        self._client = EngineClient(
            lambda address: connect_to_engine(address, Role.FRONTEND),
            self._engine_broken,
            spec.incarnation,
            max_in_flight,
            config.supervisor.start_timeout_s,
            slo,
        )
        calls = GenerateCalls(
            reader=reader,
            client=self._client,
            measures=measures,
            status=self._status,
            http=config.http,
            workers=workers,
            model_names=config.model.served_model_name or (facts.model_name,),
            max_model_len=facts.max_model_len,
            max_queue=config.scheduler.max_queue,
            slo=slo,
        )
        registry = build_registry([ColocateCollector(measures, self._client, self._status, facts, slo)])
        if "vllm" in config.http.metrics_compat:
            registry.register(VllmCollector(measures, self._client, facts, config.scheduler.prefix_caching))
        self._app = build_app(
            Api(
                config=config,
                facts=facts,
                calls=calls,
                control=ControlCalls(client=self._client, slo=slo),
                reader=reader,
                client=self._client,
                status=self._status,
                registry=registry,
                started_s=int(time.time()),
            )
        )
        self._server = _Server(
            uvicorn.Config(
                self._app,
                http=http_protocol(config.http.header_timeout_s, config.http.slow_client_timeout_s),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=1,
                backlog=2048,
            ),
            self._accepting,
        )

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        listener = socket.socket(fileno=self._spec.listen_fd)
        listener.setblocking(False)
        if self._spec.engine_address:
            self._connect(self._spec.engine_address)
        loop.add_reader(self._control.fileno(), self._read_control)
        self._beat()
        serving = loop.create_task(self._server.serve(sockets=[listener]))
        try:
            await serving
        finally:
            loop.remove_reader(self._control.fileno())
            self._client.close()

    def _connect(self, address: str) -> None:
        """A frontend that starts again learns what an operator has changed: it may differ from the settings."""
        self._client.connect(address)
        self._client.ask_state()

    def _beat(self) -> None:
        """Alive means that the event loop turns: the supervisor replaces a frontend that falls silent."""
        if self._board is not None:
            self._board.beat(Role.FRONTEND, time.monotonic_ns())
            asyncio.get_running_loop().call_later(HEARTBEAT_S, self._beat)

    def _accepting(self) -> None:
        self._control.send(ChildReady(Role.FRONTEND, os.getpid(), time.monotonic() - self._started_s))

    def _read_control(self) -> None:
        try:
            while (message := self._control.recv()) is not None:
                self._obey(message)
        except ChannelClosed:
            self._stop()  # the supervisor is gone: nobody would restart, drain or reap anything

    def _obey(self, message: object) -> None:
        match message:
            case ProcessTable():
                self._follow(message)
            case EngineAt(address=address):
                self._connect(address)
            case Drain(deadline_s=deadline_s):
                self._drain(deadline_s)
            case Shutdown():
                self._stop()
            case _:
                _log.warning("unexpected control message", kind=type(message).__name__)

    def _follow(self, table: ProcessTable) -> None:
        self._status.update(table)
        engine = self._status.process(Role.ENGINE)
        if engine is not None and engine.state == "lost":
            self._client.lost()
        elif engine is not None and engine.state == "ready":
            self._client.found()

    def _engine_broken(self, cause: str) -> None:
        self._control.send(ChannelBroken(Role.ENGINE, cause))

    def _drain(self, deadline_s: float) -> None:
        self._status.drain(deadline_s)
        self._client.when_idle(self._drained)
        asyncio.get_running_loop().call_later(deadline_s, self._end_streams)

    def _drained(self) -> None:
        self._control.send(Drained())

    def _end_streams(self) -> None:
        self._client.fail_all(_shutting_down())

    def _stop(self) -> None:
        """Streams that still run end with an error event; then the server closes."""
        self._client.fail_all(_shutting_down())
        self._server.should_exit = True


def _shutting_down() -> RequestError:
    return RequestError(
        "the server is shutting down", status=503, type="service_unavailable_error", code="shutting_down"
    )
