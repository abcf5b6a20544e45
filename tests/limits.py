"""How long a test waits for what would otherwise never come.

A waiting loop ends when the thing happens, so a generous limit costs nothing: a test that passes never comes near it,
on the slowest machine. No test asserts that something took less than a time near the one it takes.
"""

from __future__ import annotations

LIMIT_S = 60.0
START_LIMIT_S = 100.0  # imports, kernels to compile, weights to load
