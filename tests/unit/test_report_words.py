"""Numbers as a report writes them."""

from __future__ import annotations

import pytest

from colocate.bench.report.words import aligned, number, with_interval


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((2.4137, 2.312, 2.521), ("2.41", "2.31", "2.52")),
        ((0.4123, 0.3111, 0.5178), ("0.41", "0.31", "0.52")),
        ((96.078, 93.21, 98.06), ("96.1", "93.2", "98.1")),
        ((1234.5, 1100.2, 1399.9), ("1,234", "1,100", "1,400")),
        ((0.004, -1.23, 1.31), ("0.0", "-1.2", "1.3")),
        ((-0.004, -0.31, 0.3), ("0.00", "-0.31", "0.30")),
        ((2.0, None, None), ("2", "..", "..")),
        ((2.4137, 2.312, None), ("2.41", "2.31", "..")),
        ((0.00012, 0.0001, 0.00013), ("1.2e-04", "1.0e-04", "1.3e-04")),
    ],
)
def test_no_digit_that_the_interval_does_not_support(
    given: tuple[float, float | None, float | None], told: tuple[str, str, str]
) -> None:
    assert aligned(*given) == told


def test_signs_and_units() -> None:
    assert with_interval(0.4, 0.3, 0.5, "requests/s", is_signed=True) == "+0.40 requests/s [0.30, 0.50]"
    assert with_interval(-0.4, None, -0.25, "s", is_signed=True) == "-0.40 s [.., -0.25]"
    assert with_interval(None, None, None) == "-" and number(0.0) == "0"
    assert [number(value) for value in (1.5, 2.25, 3.0, 3.1625, 70.0, 12.34)] == [
        "1.5",
        "2.25",
        "3",
        "3.16",
        "70",
        "12.3",
    ]
