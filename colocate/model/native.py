"""Compiles and loads the CPU kernels of `native/cpu`, once per machine.

The library is compiled by g++ for the processor at hand and cached under a name that covers sources, flags, compiler
and processor. Without a compiler (or with COLOCATE_NATIVE=0) there are no kernels and the torch implementations serve.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import structlog

_log = structlog.get_logger("colocate.native")

SOURCES = Path(__file__).resolve().parent.parent / "native" / "cpu"
FLAGS = ("-O3", "-march=native", "-std=c++20", "-ffp-contract=off", "-fPIC", "-fopenmp")
_COMPILE_TIMEOUT_S = 300


class NativeUnavailable(Exception):
    """Why there are no kernels; the caller goes on without them."""


@cache
def load_kernels() -> ctypes.CDLL | None:
    """The compiled kernels, or None. The first call on a machine compiles (some ten seconds); says why not, once."""
    if os.environ.get("COLOCATE_NATIVE", "1") == "0":
        return None
    try:
        return _load()
    except NativeUnavailable as error:
        _log.warning("native_kernels_unavailable", reason=str(error), instead="torch operators: decode is slower")
        return None


def prepare_kernels() -> str:
    """Compile what is not cached yet, without loading it or torch; returns a line for the start-up report."""
    if os.environ.get("COLOCATE_NATIVE", "1") == "0":
        return "off (COLOCATE_NATIVE=0)"
    try:
        return f"compiled: {_built_library()}"
    except NativeUnavailable as error:
        return f"unavailable: {error}"


def _load() -> ctypes.CDLL:
    runtime = _torch_directory() / "lib" / "libgomp.so.1"
    if not runtime.exists():
        raise NativeUnavailable("this build of torch brings no libgomp, whose threads the kernels share")
    # Global, so that the kernels' OpenMP symbols resolve to the very runtime torch uses: one pool, one thread count.
    ctypes.CDLL(str(runtime), mode=ctypes.RTLD_GLOBAL)
    try:
        return ctypes.CDLL(str(_built_library()), mode=ctypes.RTLD_LOCAL)
    except OSError as error:
        raise NativeUnavailable(f"the compiled library does not load: {error}") from error


def _torch_directory() -> Path:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise NativeUnavailable("torch is not installed")
    return Path(spec.origin).parent


def _built_library() -> Path:
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not compiler:
        raise NativeUnavailable("no g++ found (install one, or name it in CXX)")
    sources = sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")])
    if not sources:
        raise NativeUnavailable(f"no sources in {SOURCES}")
    try:
        library = cache_directory() / f"cpu-{_fingerprint(compiler, sources)}.so"
        library.parent.mkdir(parents=True, exist_ok=True)
        with (library.parent / "build.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # workers start together: one compiles, the others find the result
            if not library.exists():
                _compile(compiler, library)
    except OSError as error:
        raise NativeUnavailable(f"the cache is not usable: {error}") from error
    return library


def cache_directory() -> Path:
    """COLOCATE_CACHE_DIR, else `colocate` in the user's XDG cache directory."""
    chosen = os.environ.get("COLOCATE_CACHE_DIR")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "colocate"


def _compile(compiler: str, library: Path) -> None:
    """Into a private directory beside the target, then renamed: a reader sees all of the library or none."""
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        objects, linked = Path(scratch) / "kernels.o", Path(scratch) / "kernels.so"
        _run([compiler, *FLAGS, "-c", str(SOURCES / "kernels.cpp"), "-o", str(objects)])
        # Linked without -fopenmp: a library that needed libgomp by name could bring a second one.
        _run([compiler, "-shared", str(objects), "-o", str(linked)])
        linked.rename(library)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailable(f"{command[0]} failed: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise NativeUnavailable(f"{command[0]} failed: {lines[0] if lines else done.returncode}")


def _fingerprint(compiler: str, sources: list[Path]) -> str:
    digest = hashlib.sha256("\0".join((*FLAGS, _version_of(compiler), _processor())).encode())
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:24]


def _version_of(compiler: str) -> str:
    try:
        done = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailable(f"{compiler} does not run: {error}") from error
    return f"{compiler} {done.stdout}"


def _processor() -> str:
    """What `-march=native` depends on: model and feature flags of the first processor."""
    wanted = ("model name", "flags", "Features", "CPU part")
    lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(wanted))
