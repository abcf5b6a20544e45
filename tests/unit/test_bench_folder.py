"""The folder of a run where its disk takes no more."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from colocate.bench.folder import RunFolder
from colocate.bench.read import read_run
from colocate.errors import ConfigError
from tests.bench_rows import manifest, row


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """In every file of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_reason_finds_room_where_another_manifest_does_not(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_manifest(manifest(status="partial", reasons=("under way",), elapsed_s=0.0))
    folder.add_row(row(0, 2.0, (2.1,)))
    full = manifest(status="partial", reasons=("the disk is full after 1 rows",), elapsed_s=4.5)
    with room_for((tmp_path / "manifest.json").stat().st_size):
        assert (
            len(msgspec.json.format(msgspec.json.encode(full), indent=1)) > (tmp_path / "manifest.json").stat().st_size
        )
        folder.write_manifest(full)
    folder.close()
    assert read_run(tmp_path).manifest == full
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "requests.jsonl", "server.jsonl"]


def test_a_manifest_that_finds_no_room_at_all_leaves_the_one_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    first = manifest(status="partial", reasons=("under way",))
    folder.write_manifest(first)
    with room_for((tmp_path / "manifest.json").stat().st_size), pytest.raises(ConfigError, match="disk is full"):
        folder.write_manifest(manifest(reasons=("long " * 1000,)))
    folder.close()
    assert read_run(tmp_path).manifest == first
