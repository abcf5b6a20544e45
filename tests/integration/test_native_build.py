"""Compiling the kernels: cached once, shared with torch's threads, and done without where there is no compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="this machine has no g++")

PROBE = """
import torch
from colocate.model.native import load_kernels
library = load_kernels()
torch.mm(torch.ones(300, 300), torch.ones(300, 300))
maps = {line.split()[-1] for line in open('/proc/self/maps')}
print(library is not None, sum('libgomp' in name for name in maps), any('libomp' in n or 'libiomp' in n for n in maps))
"""


def probe(cache: Path, **environment: str) -> tuple[str, str]:
    """What a fresh process says, and its log."""
    env = {**os.environ, "COLOCATE_CACHE_DIR": str(cache), **environment}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, env=env, timeout=300, check=True
    )
    lines = done.stdout.strip().splitlines()
    return lines[-1], "\n".join(lines[:-1]) + done.stderr


@needs_compiler
@pytest.mark.timeout(400)  # a compiler on a busy machine
def test_two_processes_compile_once_and_bring_no_second_openmp(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from colocate.model.native import prepare_kernels as p; print(p())"]
    env = {**os.environ, "COLOCATE_CACHE_DIR": str(tmp_path)}
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    said = {process.communicate(timeout=300)[0] for process in both}
    libraries = list(tmp_path.glob("*.so"))
    assert len(libraries) == 1 and said == {f"compiled: {libraries[0]}\n"}
    assert {path.name for path in tmp_path.iterdir()} == {libraries[0].name, "build.lock"}
    written = libraries[0].stat().st_mtime_ns
    assert probe(tmp_path)[0] == "True 1 False"
    assert libraries[0].stat().st_mtime_ns == written


@pytest.mark.parametrize("compiler", ["/nowhere/g++", shutil.which("false") or "/bin/false"])
def test_without_a_working_compiler_one_line_says_so(tmp_path: Path, compiler: str) -> None:
    answer, log = probe(tmp_path, CXX=compiler)
    assert answer.startswith("False")
    assert log.count("native_kernels_unavailable") == 1 and compiler in log
    assert not list(tmp_path.glob("*.so"))


def test_switched_off_says_nothing(tmp_path: Path) -> None:
    answer, log = probe(tmp_path, COLOCATE_NATIVE="0")
    assert answer.startswith("False") and "native" not in log


def test_an_unwritable_cache_is_named(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    answer, log = probe(in_the_way / "cache", CXX=shutil.which("true") or "/bin/true")
    assert answer.startswith("False") and "cache is not usable" in log
