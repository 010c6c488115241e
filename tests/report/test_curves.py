"""A run's picture: the same whatever was drawn before it in the process."""

from pathlib import Path

import numpy as np
import pytest

from runner.report import curves, pictures
from runner.run.run_folder import points, read_columns


def run(folder: Path, losses: np.ndarray, val: float | None, group: str = "") -> Path:
    """A folder with what a picture is drawn from."""
    folder.mkdir()
    more = ",0.05" if group else ""
    rows = [f"{t},{0.1 * 0.9**t},{loss}{more}" for t, loss in enumerate(losses)]
    header = f"step,learning_rate,loss{group and ','}{group}"
    (folder / "trace.csv").write_text("\n".join([header, *rows]) + "\n")
    last = f"1,{len(losses)},{losses.sum() / max(1, len(losses))},{'' if val is None else val},1.0"
    (folder / "metrics.csv").write_text(f"epoch,step,train/loss,val/loss,seconds\n{last}\n")
    return folder


@pytest.mark.slow
def test_a_picture_does_not_depend_on_those_before_it(tmp_path: Path) -> None:
    """Pictures of a short run, a long one with losses on both sides of zero, one without
    validation, and the first one with a second schedule are drawn in two orders and alone."""
    runs = [
        run(tmp_path / "short", np.linspace(2.3, 0.1, 20), 0.5),
        run(tmp_path / "signed", np.linspace(1.0, -3.0, 300), -2.0),
        run(tmp_path / "no validation", np.full(50, 1e-6), None),
        run(tmp_path / "group", np.linspace(2.3, 0.1, 20), 0.5, "learning_rate*0.5/dense_0"),
    ]

    def pictures(order: list[int]) -> dict[int, bytes]:
        return {i: curves.draw(runs[i], f"run {i}").read_bytes() for i in order}

    alone = {}
    for i in range(4):
        curves._figure.cache_clear()
        alone |= pictures([i])
    curves._figure.cache_clear()
    assert pictures([0, 1, 3, 2]) == alone
    assert pictures([3, 1, 0, 2]) == alone
    assert len(set(alone.values())) == 4


def test_a_long_line_is_thinned_with_both_its_ends() -> None:
    drawn = points(1_000_000, 5000)
    assert (len(drawn), drawn[0], drawn[-1]) == (5000, 0, 999_999)
    np.testing.assert_array_equal(points(7, 5000), np.arange(7))


def test_of_a_long_trace_only_the_drawn_rows_are_read(tmp_path: Path) -> None:
    folder = run(tmp_path / "long", np.linspace(2.0, 1.0, 12_345), 1.0)
    whole, thinned = read_columns(folder / "trace.csv"), read_columns(folder / "trace.csv", 100)
    for name, values in whole.items():
        np.testing.assert_array_equal(thinned[name], values[points(12_345, 100)])
    assert len(thinned["step"]) == 100
    np.testing.assert_array_equal(read_columns(folder / "metrics.csv", 100)["val/loss"], [1.0])


@pytest.mark.parametrize("num", [0, 1, 2])
def test_the_shortest_runs_have_one(tmp_path: Path, num: int) -> None:
    assert curves.draw(run(tmp_path / "run", np.ones(num), 1.0), "short").stat().st_size > 1000


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.01, 5.0, [0.01, 0.03, 0.1, 0.3, 1, 3]),
        (0.53, 1.9, [0.7, 1, 1.5]),
        (2.2, 2.31, [2.2, 2.225, 2.25, 2.275, 2.3]),
        (1e-6, 3.0, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1]),
        (1e-30, 1e10, [1e-30, 1e-25, 1e-20, 1e-15, 1e-10, 1e-5, 1, 1e5, 1e10]),
    ],
)
def test_ticks_of_a_logarithmic_axis(low: float, high: float, ticks: list[float]) -> None:
    assert pictures.log_ticks(low, high) == ticks


def test_every_logarithmic_axis_has_three_to_nine_ticks_and_no_large_gap() -> None:
    """1,000 random axes of up to twelve decades."""
    draw = np.random.default_rng(0)
    for _ in range(1000):
        low = 10 ** draw.uniform(-9, 3)
        high = low * 10 ** draw.uniform(0.02, 12)
        found = pictures.log_ticks(low, high)
        assert 2 < len(found) < 10
        assert low <= found[0] < found[-1] <= high
        gaps = np.diff(np.log([low, *found, high])) / np.log(high / low)
        assert gaps.max() < 0.5


def test_a_run_s_picture_has_a_title_with_all_that_it_is_and_plain_ticks(
    tmp_path: Path,
) -> None:
    """Use the default run's range: between 0.5 and 2.3 an axis of whole decades has one tick."""
    from runner.cli.compose import compose
    from runner.config.schema import parse
    from runner.tasks.train import _title

    title = _title(parse(compose(["schedule=cosine", "optimizer.lr=3e-3"])))
    assert title == "digits, mlp, adam, cosine, lr 0.003, seed 0, lightning"
    curves.draw(run(tmp_path / "run", np.geomspace(2.3, 0.5, 100), 0.6), f"{title} $^$")
    rate, loss = curves._figure().axes
    assert rate.get_title() == f"{title} " + r"\$^\$"
    labels = [label.get_text() for label in loss.get_yticklabels()]
    assert labels == ["0.5", "0.7", "1", "1.5", "2"]
