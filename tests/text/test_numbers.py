"""A metric is shown with digits that tell it from others."""

import pytest

from runner.text.numbers import show_metric


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.25, "0.2500"),
        (0.0, "0.0000"),
        (0.0005, "0.0005"),
        (3.21e-7, "3.21e-07"),  # 0.0000 with four decimals
        (-999999.0, "-999999.0000"),
        (1.13e29, "1.13e+29"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_a_metric_has_four_decimals_or_three_digits(value: float, expected: str) -> None:
    assert show_metric(value) == expected
