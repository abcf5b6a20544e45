"""Fixtures of the seams that have more than one implementation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from colocate.model import native


@pytest.fixture(params=["torch", "native"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both kernel paths of the decoder; the native one where this machine can compile it."""
    monkeypatch.setenv("COLOCATE_NATIVE", "1" if request.param == "native" else "0")
    native.load_kernels.cache_clear()
    if request.param == "native" and native.load_kernels() is None:
        pytest.skip("no compiler on this machine")
    yield request.param
    native.load_kernels.cache_clear()
