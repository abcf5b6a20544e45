"""The hand-over copies nothing: both workers map the same physical pages, and the tokens are those of one process."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from colocate.device.cpu.topology import usable_cores
from tests.daemon import Daemon, start_daemon
from tests.model_harness import Harness

DEMO = Path(__file__).parents[2] / "colocate" / "model" / "demo"
PROMPTS = ([5, 9, 200, 31], list(range(300, 417)), list(range(260, 293)))
NUM_TOKENS = 40
PAGE = mmap.PAGESIZE


@dataclass(frozen=True)
class Mapping:
    start: int
    num_bytes: int
    permissions: str
    inode: int
    name: str


def mappings(pid: int) -> dict[str, Mapping]:
    """The shared memory segments a process maps, by name."""
    found: dict[str, Mapping] = {}
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, permissions, _, _, inode, *name = line.split(maxsplit=5)
        if name and name[0].startswith("/memfd:colocate"):
            start, end = (int(part, 16) for part in span.split("-"))
            label = name[0].removeprefix("/memfd:").removesuffix(" (deleted)").strip()
            found[label] = Mapping(start, end - start, permissions, int(inode), label)
    return found


def page_frames(pid: int, mapping: Mapping, num_pages: int) -> list[int]:
    """Physical frame numbers of the first pages; 0 where not present, or where the kernel does not tell us."""
    with Path(f"/proc/{pid}/pagemap").open("rb") as file:
        file.seek(mapping.start // PAGE * 8)
        words = struct.unpack(f"<{num_pages}Q", file.read(num_pages * 8))
    return [word & ((1 << 55) - 1) if word >> 63 else 0 for word in words]


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    arguments = ("--device", "cpu", "--kv-memory", "64MiB", "--deterministic")
    with start_daemon(*arguments, "--units", "2", "--plan", "static:p1d1") as running:
        yield running


def generate(daemon: Daemon, prompt: list[int]) -> list[int]:
    reply = daemon.complete(
        prompt,
        max_tokens=NUM_TOKENS,
        temperature=0,
        ignore_eos=True,
        return_token_ids=True,  # type: ignore[arg-type]
    )
    assert reply.status_code == 200, reply.text
    tokens: list[int] = reply.json()["choices"][0]["token_ids"]
    return tokens


@pytest.mark.skipif(len(usable_cores().core_ids) < 2, reason="one core has no split")
def test_both_workers_see_the_same_physical_kv_pages(daemon: Daemon) -> None:
    for prompt in PROMPTS:
        generate(daemon, prompt)
    prefill, decode = daemon.pid_of("prefill"), daemon.pid_of("decode")
    theirs, ours = mappings(prefill), mappings(decode)
    (kv,) = [name for name in theirs if "kv" in name]
    (weights,) = [name for name in theirs if "weights" in name]
    for name in (kv, weights):
        assert theirs[name].inode == ours[name].inode
        assert theirs[name].num_bytes == ours[name].num_bytes
        assert theirs[name].permissions.endswith("s"), "a private mapping would copy on write"
    assert "w" in theirs[kv].permissions
    for mapping in (theirs[weights], ours[weights]):
        assert "w" not in mapping.permissions, "weights are mapped read-only"
    num_pages = 2048
    first, second = page_frames(prefill, theirs[kv], num_pages), page_frames(decode, ours[kv], num_pages)
    both = [(one, other) for one, other in zip(first, second, strict=True) if one and other]
    if not any(first):
        pytest.skip("the kernel shows page frames to root only; inodes and permissions were checked")
    assert len(both) > 10, "the workers have hardly touched a common page"
    assert all(one == other for one, other in both)


@pytest.mark.skipif(len(usable_cores().core_ids) < 2, reason="one core has no split")
def test_greedy_tokens_equal_a_single_process_run(daemon: Daemon) -> None:
    harness = Harness.load(DEMO, deterministic=True)
    assert [generate(daemon, prompt) for prompt in PROMPTS] == harness.generate(PROMPTS, NUM_TOKENS)
