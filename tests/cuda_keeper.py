"""A real keeper process over the fake GPU, or the real one, with this test in the place of the supervisor."""

from __future__ import annotations

import dataclasses
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import structs

from colocate.config.serve import MemorySection, MemoryTransport, ModelConfigSection, ServeConfig
from colocate.device.cuda.backend import FakeBackend
from colocate.device.cuda.fake import FakeDriver
from colocate.messages.control import ChildFailed, ChildReady
from colocate.messages.spec import ProcessSpec, RuntimeFacts
from colocate.transport.board import Board
from colocate.transport.channel import keeper_address
from colocate.transport.control import ControlChannel
from colocate.transport.waiting import wait
from colocate.types import Role
from colocate.worker.cuda.attach import CudaMemory, attach_cuda
from tests.daemon import eventually
from tests.limits import LIMIT_S
from tests.worker_process import emulated_facts

DEMO = Path(__file__).parents[1] / "colocate" / "model" / "demo"
NUM_BLOCKS = 40


def gpu_facts(model_dir: Path = DEMO, dtype: str = "bfloat16", num_blocks: int = NUM_BLOCKS) -> RuntimeFacts:
    return structs.replace(
        emulated_facts(), device_kind="cuda", model_dir=str(model_dir), dtype=dtype, num_blocks=num_blocks
    )


@dataclass
class KeeperUnderTest:
    process: subprocess.Popen[bytes]
    spec: ProcessSpec
    control: ControlChannel

    def until_said(self, kind: type[msgspec.Struct]) -> msgspec.Struct:
        """The first message of this kind; what comes before is dropped."""
        deadline_s = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline_s:
            wait([self.control], 0.05)
            while (message := self.control.recv()) is not None:
                if isinstance(message, kind):
                    return message
        raise AssertionError(f"no {kind.__name__}; exit code {self.process.poll()}")

    def ready(self) -> ChildReady:
        message = self.until_said(ChildReady)
        assert isinstance(message, ChildReady)
        return message

    def failed(self) -> ChildFailed:
        message = self.until_said(ChildFailed)
        assert isinstance(message, ChildFailed)
        return message

    def attach(self) -> CudaMemory:
        """In this process. The fake driver lives as long as what it mapped."""
        return attach_cuda(self.spec, FakeBackend(FakeDriver()))

    def loader_pid(self) -> int:
        """Waits until there is one."""
        return eventually(lambda: next(iter(children_of(self.process.pid)), 0), what="a loader")


def children_of(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@contextmanager
def keeper_process(
    facts: RuntimeFacts | None = None,
    *,
    transport: MemoryTransport = "vmm",
    model: ModelConfigSection | None = None,
    total_bytes: int = 1 << 30,
    is_fake: bool = True,
) -> Iterator[KeeperUnderTest]:
    board = Board.create()
    parent, child = ControlChannel.pair()
    run_id = secrets.token_hex(6)
    config = ServeConfig(memory=MemorySection(memory_transport=transport), model=model or ModelConfigSection())
    config = dataclasses.replace(config, device=dataclasses.replace(config.device, device="cuda"))
    spec = ProcessSpec(
        role=Role.KEEPER,
        incarnation=1,
        epoch=1,
        run_id=run_id,
        config=config,
        facts=facts or gpu_facts(),
        control_fd=child.fileno(),
        board_fd=board.fd,
        bell_fds=board.bell_fds,
        keeper_address=keeper_address(run_id, 1),
    )
    fake = {"COLOCATE_FAKE_CUDA": "1", "COLOCATE_FAKE_CUDA_BYTES": str(total_bytes)}
    process = subprocess.Popen(
        [sys.executable, "-m", "colocate.launch", Role.KEEPER.value, str(os.getpid())],
        stdin=subprocess.PIPE,
        pass_fds=[child.fileno(), board.fd, *board.bell_fds],
        env={**os.environ, **(fake if is_fake else {})},
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.msgpack.encode(spec))
    process.stdin.close()
    child.close()
    try:
        yield KeeperUnderTest(process, spec, parent)
    finally:
        process.kill()
        process.wait()
        parent.close()
        board.close()
