"""How many layers a slice gets: the bound holds, sizes are kept apart, shares are scaled."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from colocate.worker.slice_pace import SlicePace


def test_a_size_that_was_never_met_starts_with_one_layer() -> None:
    pace = SlicePace(0.02)
    assert pace.layers(512, 512) == 1
    pace.observe(512, 512, 1, 0.004)
    assert pace.layers(512, 512) == 5
    assert pace.layers(8, 8) == 1, "a few tokens are bound by reading the weights: another rate"
    assert pace.layers(512, 8000) == 1, "and a long context by attention"
    assert pace.layers(0, 0) == 1


def test_a_new_share_scales_what_was_measured_on_the_old_one() -> None:
    pace = SlicePace(0.02)
    pace.units_changed(8)
    pace.observe(512, 512, 2, 0.008)
    assert pace.layers(512, 512) == 5
    pace.units_changed(4)
    assert pace.layers(512, 512) == 2
    pace.units_changed(0)  # nothing runs
    pace.units_changed(16)
    assert pace.layers(512, 512) == 10


def test_one_slow_slice_does_not_undo_what_was_learnt() -> None:
    pace = SlicePace(0.02)
    for _ in range(10):
        pace.observe(512, 512, 1, 0.002)
    pace.observe(512, 512, 1, 0.004)
    assert 7 <= pace.layers(512, 512) < 10


@given(st.floats(1e-6, 1.0), st.integers(1, 4096), st.floats(1e-4, 0.2))
def test_a_predicted_slice_keeps_the_bound_or_is_one_layer(layer_s: float, num_tokens: int, bound_s: float) -> None:
    pace = SlicePace(bound_s)
    pace.observe(num_tokens, num_tokens, 3, 3 * layer_s)
    layers = pace.layers(num_tokens, num_tokens)
    assert layers == 1 or layers * layer_s <= bound_s * 1.000001
    assert (layers + 1) * layer_s > bound_s * 0.999999, "and fills it"
