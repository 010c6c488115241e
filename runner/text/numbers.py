"""Numbers for a reader."""


def show_metric(value: float, sign: str = "") -> str:
    """Format a loss or a metric with four decimals, and one that these do not show with three
    digits. `sign="+"` gives a difference its sign.

    >>> [show_metric(value) for value in (0.25, 3.2e-07, -1e20)], show_metric(0.1, "+")
    (['0.2500', '3.2e-07', '-1e+20'], '+0.1000')
    """
    is_common = value == 0 or 5e-4 <= abs(value) < 1e6
    return format(value, f"{sign}.4f" if is_common else f"{sign}.3g")
