"""Compiles the CUDA C++ of `native/cuda` with NVRTC, which comes as a wheel: no nvcc, and no GPU is needed for it.

Cubins are cached per user under a name that covers source, options and compiler.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

from colocate.errors import ConfigError, InvariantError
from colocate.model.native import cache_directory

SOURCES = Path(__file__).resolve().parents[2] / "native" / "cuda"


def cubin_of(name: str, compute_capability: tuple[int, int]) -> bytes:
    """The machine code of `native/cuda/<name>.cu` for one GPU generation: (9, 0) is sm_90. About 0.2 s when not cached.

    Raises ConfigError where NVRTC is not installed or too old for the GPU, InvariantError where our source is wrong.
    """
    source = (SOURCES / f"{name}.cu").read_bytes()
    options = (f"--gpu-architecture=sm_{compute_capability[0]}{compute_capability[1]}", "--std=c++17")
    api = _load_api()
    version = _call(api, "nvrtcVersion")
    digest = hashlib.sha256("\0".join((*options, str(version))).encode() + b"\0" + source).hexdigest()[:24]
    cached = cache_directory() / f"{name}-{digest}.cubin"
    with contextlib.suppress(OSError):
        return cached.read_bytes()
    cubin = compile_source(name, source, options)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs a compilation, nothing else
        _store(cached, cubin)
    return cubin


def compile_source(name: str, source: bytes, options: tuple[str, ...]) -> bytes:
    """One translation unit, not cached. Raises as `cubin_of`."""
    api = _load_api()
    program = _call(api, "nvrtcCreateProgram", source, f"{name}.cu".encode(), 0, [], [])
    try:
        result = api.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if int(result[0]):
            log = bytearray(_call(api, "nvrtcGetProgramLogSize", program))
            _call(api, "nvrtcGetProgramLog", program, log)
            text = bytes(log).rstrip(b"\0").decode(errors="replace").strip()
            if "gpu-architecture" in text:
                problem = f"NVRTC {_call(api, 'nvrtcVersion')} does not know this GPU: {text}"
                raise ConfigError("device", problem, "install a newer nvidia-cuda-nvrtc")
            raise InvariantError(f"{name}.cu does not compile: {text}")
        cubin = bytearray(_call(api, "nvrtcGetCUBINSize", program))
        _call(api, "nvrtcGetCUBIN", program, cubin)
        return bytes(cubin)
    finally:
        api.nvrtcDestroyProgram(program)


def _store(path: Path, content: bytes) -> None:
    """Renamed into place: a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, scratch = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
        Path(scratch).rename(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def _load_api() -> Any:
    remedy = "install colocate[cuda]"
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise ConfigError("device", f"the package cuda-python is missing or broken: {error}", remedy) from error
    try:
        nvrtc.nvrtcVersion()
    except Exception as error:
        # The bindings load the library now; the type of what they raise without it differs between versions.
        raise ConfigError("device", f"NVRTC does not load: {str(error).splitlines()[0]}", remedy) from error
    return nvrtc


def _call(api: Any, name: str, *arguments: object) -> Any:
    result = getattr(api, name)(*arguments)
    if int(result[0]):
        raise InvariantError(f"{name}: {result[0]!r}")
    return None if len(result) == 1 else result[1] if len(result) == 2 else result[1:]
