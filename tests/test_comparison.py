"""Which schedule is best and whether that is more than noise: the statistics, and what a multirun and task=compare say."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from runner.report.statistics import compare, holm, power, seeds_needed, summary
from runner.run_folder import read_json
from tests.command_line import Done, forked

# The statistics


def test_a_summary_is_that_of_a_table_of_student_s_t() -> None:
    """n = 5: t(0.975, 4) = 2.776; 1 ... 5 have the mean 3 and the deviation sqrt(2.5)."""
    found = summary([1, 2, 3, 4, 5])
    assert (found.num, found.mean) == (5, 3)
    assert found.sd == pytest.approx(2.5**0.5)
    assert found.interval == pytest.approx((3 - 2.776 * 0.5**0.5, 3 + 2.776 * 0.5**0.5), abs=1e-3)  # its digits
    assert (summary([7.0]).sd, summary([7.0]).interval) == (None, None)


def test_p_is_that_of_the_paired_test_over_the_seeds_in_common() -> None:
    a, b = {0: 0.30, 1: 0.35, 2: 0.32, 4: 0.9}, {1: 0.30, 0: 0.29, 2: 0.28, 3: 0.1}
    found = compare({"a": a, "b": b})["a", "b"]
    expected = stats.ttest_rel([a[0], a[1], a[2]], [b[0], b[1], b[2]])
    assert found.num == 3
    assert found.difference == pytest.approx(0.1 / 3)
    assert found.p == pytest.approx(float(expected.pvalue), rel=1e-12)


def test_holm_s_correction_by_hand() -> None:
    """Four p in order, times 4, 3, 2, 1, none below the one before."""
    given = {("a", "b"): 0.01, ("a", "c"): 0.04, ("b", "c"): 0.03, ("c", "d"): 0.005}
    expected = {("c", "d"): 0.02, ("a", "b"): 0.03, ("b", "c"): 0.06, ("a", "c"): 0.06}
    assert holm(given) == pytest.approx(expected)


@pytest.mark.parametrize(("effect", "num"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_the_seeds_needed_are_those_of_the_tables(effect: float, num: int) -> None:
    """A paired t test, two-sided at 0.05, power 0.8: what G*Power gives for Cohen's small, medium and large effect."""
    assert seeds_needed(effect, 0.05) == num
    assert power(effect, num, 0.05) >= 0.8 > power(effect, num - 1, 0.05)


def test_what_cannot_be_known_is_not_said() -> None:
    """One seed; a difference that is the same in every seed; none at all."""
    assert compare({"a": {0: 1.0}, "b": {0: 2.0}})["a", "b"].p is None
    assert compare({"a": {0: 1.0, 1: 2.0}, "b": {2: 1.0, 3: 2.0}})["a", "b"].p is None
    same = compare({"a": {0: 1.0, 1: 2.0}, "b": {0: 1.0, 1: 2.0}})["a", "b"]
    assert (same.p, same.is_real, same.more_seeds) == (1.0, False, None)
    assert compare({"a": {0: 1.0, 1: 2.0}, "b": {0: 1.5, 1: 2.5}})["a", "b"].p == 0


def simulated(draw: np.random.Generator, num_seeds: int, gaps: list[float]) -> dict[str, dict[int, float]]:
    """Groups with the same noise of a seed and noise of their own; the difference of two has a deviation of 1."""
    seed = draw.normal(0, 3, num_seeds)
    own = {f"{i}": gap + seed + draw.normal(0, 0.5**0.5, num_seeds) for i, gap in enumerate(gaps)}
    return {name: dict(enumerate(values.tolist())) for name, values in own.items()}


def best_is_told(values: dict[str, dict[int, float]]) -> bool:
    """Some other group is told from the one with the least mean."""
    best = min(values, key=lambda name: sum(values[name].values()))
    return any(found.is_real for pair, found in compare(values).items() if best in pair)


@pytest.mark.parametrize("num_groups", [2, 4])
def test_identical_schedules_are_told_apart_in_no_more_than_5_of_100_cases(num_groups: int) -> None:
    """Though the best is chosen from the same values. 600 repetitions; three deviations of their share are allowed."""
    draw = np.random.default_rng(0)
    wrong = [best_is_told(simulated(draw, 5, [0.0] * num_groups)) for _ in range(600)]
    assert np.mean(wrong) < 0.05 + 3 * (0.05 * 0.95 / 600) ** 0.5


def test_a_difference_of_two_deviations_is_found_with_the_seeds_that_the_calculation_says() -> None:
    """5 of them, found in at least 80 of 100; three deviations of the share are allowed."""
    num = seeds_needed(2.0, 0.05)
    assert num == 5  # t(0.975, 4) = 2.78 against a shift of 2 sqrt(5) = 4.47
    draw = np.random.default_rng(0)
    found = [best_is_told(simulated(draw, num, [0.0, 2.0])) for _ in range(400)]
    assert np.mean(found) > 0.8 - 3 * (0.8 * 0.2 / 400) ** 0.5


# What a multirun says

SEEDS = range(5)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    """Three schedules, two of them the same thing by two names."""
    here = tmp_path_factory.mktemp("swept")
    command = ("-m", "schedule=constant,linear,power", "seed=0,1,2,3,4", "trainer.max_epochs=3", "device=cpu")
    (done,) = forked(here, command)
    assert (done.status, done.err) == (0, "")
    return done, here / done.folder


def losses(folder: Path, schedule: str) -> list[float]:
    """The last validation loss of each seed, from metrics.csv."""
    found = []
    for seed in SEEDS:
        (path,) = folder.glob(f"schedule={schedule},seed={seed},*/metrics.csv")
        with path.open(newline="") as file:
            found.append(float(list(csv.DictReader(file))[-1]["val/loss"]))
    return found


def rows(folder: Path) -> dict[str, dict[str, str]]:
    """comparison.md's table of groups, by their overrides."""
    lines = [line for line in (folder / "comparison.md").read_text().splitlines() if line.startswith("|")]
    header, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row["overrides"]: row for row in (dict(zip(header, cells, strict=True)) for cells in body)}


def test_winner_intervals_and_p_are_those_of_an_independent_calculation(swept: tuple[Done, Path]) -> None:
    """From metrics.csv by scipy alone, to the digits that are printed."""
    done, folder = swept
    values = {name: losses(folder, name) for name in ("constant", "linear", "power")}
    order = sorted(values, key=lambda name: np.mean(values[name]))
    pairs = [(a, b) for i, a in enumerate(order) for b in order[i + 1 :]]
    raw = {pair: float(stats.ttest_rel(values[pair[0]], values[pair[1]]).pvalue) for pair in pairs}
    ranked, adjusted = sorted(raw, key=lambda pair: raw[pair]), {}
    for i, pair in enumerate(ranked):
        adjusted[pair] = min(1.0, max((len(pairs) - j) * raw[ranked[j]] for j in range(i + 1)))
    table = rows(folder)
    assert [row["overrides"] for row in table.values()] == [f"schedule={name}" for name in order]
    for rank, name in enumerate(order, start=1):
        row, own = table[f"schedule={name}"], values[name]
        low, high = stats.t.interval(0.95, 4, loc=np.mean(own), scale=stats.sem(own))
        assert (row["rank"], row["seeds"]) == (str(rank), "5")
        assert row["val/loss"] == f"{np.mean(own):.4f}"
        assert row["sd"] == f"{np.std(own, ddof=1):.4f}"
        assert row["95 % interval"] == f"{low:.4f} to {high:.4f}"
        if rank > 1:
            assert row["from the best"] == f"{np.mean(own) - np.mean(values[order[0]]):+.4f}"
            assert row["p"] == f"{adjusted[order[0], name]:.2g}"
    *_, winner, command = done.out.splitlines()
    assert winner.startswith(f"winner   schedule={order[0]}")
    assert ("not beyond noise" in winner) == any(adjusted[order[0], name] >= 0.05 for name in order[1:])
    assert command == f"to copy  python -m runner schedule={order[0]} trainer.max_epochs=3 device=cpu"


def test_it_says_what_each_group_took_to_reach_the_target(swept: tuple[Done, Path]) -> None:
    """The worst median of the best epochs: the first epoch at least as good, by its last step, median over the seeds."""
    _, folder = swept
    curves = {}
    for name in ("constant", "linear", "power"):
        paths = [next(folder.glob(f"schedule={name},seed={seed},*/metrics.csv")) for seed in SEEDS]
        curves[name] = [[float(row["val/loss"]) for row in csv.DictReader(path.open(newline=""))] for path in paths]
    target = max(np.median([min(curve) for curve in each]) for each in curves.values())
    table = rows(folder)
    (column,) = [key for key in next(iter(table.values())) if key.startswith("steps to ")]
    assert column == f"steps to {target:.4g}"
    for name, each in curves.items():
        first = [next((40 * (i + 1) for i, v in enumerate(curve) if v <= target), np.inf) for curve in each]
        expected = np.median(first)
        assert table[f"schedule={name}"][column] == ("never" if np.isinf(expected) else f"{expected:.0f}")


def test_compare_says_of_the_same_runs_what_the_multirun_said(swept: tuple[Done, Path], tmp_path: Path) -> None:
    """A folder of runs, and the runs one by one; test/loss is never read."""
    _, folder = swept
    each = ",".join(f"'{path.parent}'" for path in sorted(folder.glob("*/result.json")))
    for runs in (f"'{folder}'", each):
        (done,) = forked(tmp_path, ("task=compare", f"runs=[{runs}]"))
        assert (done.status, done.err) == (0, "")
        path = tmp_path / done.folder
        assert path.parent == tmp_path / "outputs" / "comparisons"
        assert (path / "comparison.md").read_text() == (folder / "comparison.md").read_text()
        assert {"comparison.csv", "comparison.html", "comparison.png"} <= {file.name for file in path.iterdir()}
    (twice,) = forked(tmp_path, ("task=compare", f"runs=['{folder}','{folder}']"))
    assert twice.status == 2
    assert re.fullmatch(r"error: runs holds .* twice\n", twice.err)


def test_with_one_seed_it_says_that_it_cannot_know_and_backends_get_a_parity_table(tmp_path: Path) -> None:
    """In float64: rates are equal; 1e-12 for weights, as the parity suite has it."""
    (done,) = forked(
        tmp_path,
        (
            "-m",
            "backend=lightning,keras",
            "schedule=constant,linear",
            "trainer.max_epochs=2",
            "device=cpu",
            "trainer.precision=float64",
        ),
    )
    assert done.status == 0
    assert "with one seed in common it cannot be known whether that is more than noise" in done.out
    assert "(by its mean; not beyond noise)" in done.out
    lines = [line.strip("|").split("|") for line in done.out.splitlines() if "keras, lightning" in line]
    assert [line[0].strip() for line in lines] == [
        f"schedule={name} trainer.max_epochs=2 device=cpu trainer.precision=float64" for name in ("constant", "linear")
    ]
    for _, _, rate, loss, weights, beyond in lines:
        assert float(rate) == 0
        assert float(loss) < 1e-12
        assert float(weights) < 1e-12
        assert beyond.strip().startswith("none")
    assert len([line for line in done.out.splitlines() if re.match(r"\| [12] +\| schedule=", line)]) == 2


def test_a_failed_job_is_named_and_not_ranked(tmp_path: Path) -> None:
    (done,) = forked(tmp_path, ("-m", "optimizer.lr=1e-3,1e30", "seed=0,1", "trainer.max_steps=20", "device=cpu"))
    assert done.status == 1
    assert done.out.count("failed: optimizer.lr=1e+30") == 2
    assert "2 of 4 jobs completed" in done.out
    assert (
        read_json(next((tmp_path / done.folder).glob("optimizer.lr=1e+30,seed=0*/result.json")))["status"] == "failed"
    )
    assert done.out.splitlines()[-2] == "winner   optimizer.lr=0.001 trainer.max_steps=20 device=cpu"
