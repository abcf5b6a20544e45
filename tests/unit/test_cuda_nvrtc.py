"""Every CUDA C++ source compiles for sm_90 on a machine without a GPU, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from colocate.device.cuda import nvrtc
from colocate.device.cuda.nvrtc import SOURCES, compile_source, cubin_of
from colocate.errors import ConfigError, InvariantError

KERNELS = {"smid": b"smid_probe", "burn": b"burn"}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("COLOCATE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_every_source_is_named_here() -> None:
    assert {path.stem for path in SOURCES.glob("*.cu")} == set(KERNELS)


@pytest.mark.parametrize("name", KERNELS)
def test_each_compiles_for_hopper_and_is_cached(name: str, cache: Path) -> None:
    cubin = cubin_of(name, (9, 0))
    assert cubin.startswith(b"\x7fELF") and KERNELS[name] in cubin
    (stored,) = cache.iterdir()
    assert stored.read_bytes() == cubin
    stored.write_bytes(b"as it was cached")
    assert cubin_of(name, (9, 0)) == b"as it was cached"
    cubin_of(name, (8, 0))
    assert len(list(cache.iterdir())) == 2, "one for each generation, and no scratch file"


def test_a_cache_that_cannot_be_written_costs_only_time(cache: Path) -> None:
    cache.write_text("a file, not a directory")
    assert cubin_of("smid", (9, 0)).startswith(b"\x7fELF")


def test_a_wrong_source_is_our_bug_and_told_with_the_compiler_s_words() -> None:
    with pytest.raises(InvariantError, match=r"broken\.cu does not compile: .*nonsense"):
        compile_source("broken", b"__global__ void f() { nonsense; }", ("--gpu-architecture=sm_90",))


def test_a_gpu_that_the_compiler_does_not_know_is_the_operator_s_to_mend() -> None:
    with pytest.raises(ConfigError, match="install a newer nvidia-cuda-nvrtc"):
        cubin_of("smid", (99, 0))
    assert nvrtc.SOURCES.is_dir()
