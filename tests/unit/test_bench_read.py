"""Run and sweep folders as they are found: whole, cut, of another version, missing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from colocate.bench.read import Run, Sweep, read_recall, read_results, read_run, read_sweep
from colocate.bench.records import SCHEMA_VERSION, RecallRecord, ServerSample, SweepManifest
from colocate.errors import ConfigError
from tests.bench_rows import manifest, row, run, write_run

WHOLE = run([row(1, 3.0, (3.1,)), row(0, 2.0, (2.1, 2.2))], [ServerSample(2.0, kv_usage=0.5), ServerSample(1.0)])


def test_a_run_as_it_was_written(tmp_path: Path) -> None:
    found = read_run(write_run(tmp_path, WHOLE))
    assert found.manifest == manifest()
    assert [request.index for request in found.rows] == [0, 1]
    assert [sample.at_s for sample in found.samples] == [1.0, 2.0]
    assert (found.status, found.reasons) == ("valid", ())


def test_a_server_that_told_nothing_left_no_file(tmp_path: Path) -> None:
    write_run(tmp_path, WHOLE)
    (tmp_path / "server.jsonl").unlink()
    assert read_run(tmp_path).samples == () and read_run(tmp_path).status == "valid"


def test_a_client_that_was_killed_ran_until_the_last_thing_it_wrote(tmp_path: Path) -> None:
    write_run(tmp_path, run(WHOLE.rows, status="partial", elapsed_s=0.0))
    assert read_run(tmp_path).manifest.elapsed_s == 3.1
    write_run(tmp_path, run(WHOLE.rows, status="failed", elapsed_s=0.0))
    assert read_run(tmp_path).manifest.elapsed_s == 0.0


@pytest.mark.parametrize("name", ["requests.jsonl", "server.jsonl"])
def test_a_last_line_that_is_cut_marks_the_run(tmp_path: Path, name: str) -> None:
    path = write_run(tmp_path, WHOLE) / name
    path.write_bytes(path.read_bytes()[:-9])
    found = read_run(tmp_path)
    assert found.status == "partial"
    assert found.reasons == (f"{name}: the last line is cut off, 1 lines are whole",)


def test_a_last_line_without_its_newline_is_whole(tmp_path: Path) -> None:
    path = write_run(tmp_path, WHOLE) / "requests.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    assert len(read_run(tmp_path).rows) == 2 and read_run(tmp_path).status == "valid"


def test_what_is_cut_does_not_become_better(tmp_path: Path) -> None:
    path = write_run(tmp_path, run(WHOLE.rows, status="invalid", reasons=("late",))) / "requests.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert read_run(tmp_path).status == "invalid" and len(read_run(tmp_path).reasons) == 2


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = write_run(tmp_path, WHOLE) / "requests.jsonl"
    path.write_bytes(b'{"index": 0}\n' + path.read_bytes())
    with pytest.raises(ConfigError, match=r"requests.jsonl:1: cannot be read: .*scheduled_s"):
        read_run(tmp_path)


def test_a_request_that_stands_twice_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, run([row(0, 2.0), row(0, 3.0)]))
    with pytest.raises(ConfigError, match="request 0 stands in it twice"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("version", "remedy"), [(SCHEMA_VERSION + 1, "newer colocate"), (0, "the version of colocate that wrote it")]
)
def test_another_version_is_refused_with_both_and_a_remedy(tmp_path: Path, version: int, remedy: str) -> None:
    folder = write_run(tmp_path / "old-run", run([], schema_version=version))
    with pytest.raises(ConfigError) as refused:
        read_run(folder)
    for part in ("old-run", f"schema version {version}", f"reads version {SCHEMA_VERSION}", remedy):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not a manifest"),
        (b'{"run_id": "r"}', "missing required field `schema_version`"),
        (b'{"schema_version": 1}', "cannot be read: .*missing required field"),
        (b"\x89PNG", "is not a manifest"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ConfigError, match=problem) as refused:
        read_run(tmp_path)
    assert "manifest.json" in str(refused.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: there is no such folder"):
        read_results(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"holds neither manifest.json .* nor sweep.json"):
        read_results(tmp_path)
    write_run(tmp_path, WHOLE)
    (tmp_path / "requests.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"requests.jsonl: there is no such file"):
        read_results(tmp_path)
    with pytest.raises(ConfigError, match=r"sweep.json: there is no such file"):
        read_sweep(tmp_path)


def test_a_sweep_keeps_the_runs_that_can_be_read(tmp_path: Path) -> None:
    facts = SweepManifest(SCHEMA_VERSION, "2026-01-01T00:00:00Z", (), (), (1.0,), (0,), {}, (), 100, None, {}, {})
    (tmp_path / "sweep.json").write_bytes(msgspec.json.encode(facts))
    write_run(tmp_path / "runs" / "b", WHOLE)
    write_run(tmp_path / "runs" / "a", WHOLE)
    (tmp_path / "runs" / "c").mkdir()
    (tmp_path / "runs" / "notes.txt").touch()
    found = read_results(tmp_path)
    assert isinstance(found, Sweep) and found.manifest == facts
    assert [made.folder.name for made in found.runs] == ["a", "b"]
    assert [lost.folder.name for lost in found.unreadable] == ["c"] and "manifest.json" in found.unreadable[0].problem
    assert isinstance(read_results(tmp_path / "runs" / "a"), Run)


def test_a_sweep_that_has_not_begun_is_empty(tmp_path: Path) -> None:
    facts = SweepManifest(SCHEMA_VERSION, "2026-01-01T00:00:00Z", (), (), (), (), {}, (), 100, None, {}, {})
    (tmp_path / "sweep.json").write_bytes(msgspec.json.encode(facts))
    assert read_sweep(tmp_path).runs == ()


RECALL = RecallRecord(SCHEMA_VERSION, "slo", "demo", 7, 8, 16, 0, ("colocate",), "2026-01-01T00:00:00Z")


def _write_recall(path: Path, **changes: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(RECALL, **changes)))
    return path


def test_recall_is_read_with_its_sweep_and_a_bad_record_does_not_hide_the_others(tmp_path: Path) -> None:
    facts = SweepManifest(SCHEMA_VERSION, "2026-01-01T00:00:00Z", (), (), (), (), {}, (), 100, None, {}, {})
    (tmp_path / "sweep.json").write_bytes(msgspec.json.encode(facts))
    assert read_sweep(tmp_path).recalls == ()
    _write_recall(tmp_path / "recall" / "slo.json")
    (tmp_path / "recall" / "slo.log").touch()
    (tmp_path / "recall" / "elastic.json.part").touch()
    _write_recall(tmp_path / "recall" / "new.json", schema_version=SCHEMA_VERSION + 1)
    found = read_sweep(tmp_path)
    assert found.recalls == (RECALL,)
    (lost,) = found.unreadable
    assert lost.folder.name == "new.json"
    assert f"new.json has schema version {SCHEMA_VERSION + 1}" in lost.problem and "newer colocate" in lost.problem


def test_a_damaged_record_of_recall_is_named(tmp_path: Path) -> None:
    path = tmp_path / "slo.json"
    with pytest.raises(ConfigError, match=r"slo.json: says that 9 of 8 answers were right.*ask again"):
        read_recall(_write_recall(path, right=9))
    for content, problem in ((b"{", "is not a record of recall"), (b'{"schema_version": 1}', "cannot be read")):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"slo.json: {problem}.*ask again"):
            read_recall(path)
