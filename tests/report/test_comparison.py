"""The answer of a multirun and of task=compare: the best schedule, and whether it is more than
noise."""

import csv
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import stats

from runner.config.schema import Answer
from runner.errors import ConfigError
from runner.report import tested as on_test
from runner.report.answer import answers
from runner.report.jobs import read
from runner.run.run_folder import read_json
from runner.tasks.compare import compare as compare_task
from tests.command_line import Done, forked
from tests.report.independent import check
from tests.run_folders import write_run

# What a multirun says

SEEDS = range(5)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    """Three schedules, two of them the same thing by two names."""
    here = tmp_path_factory.mktemp("swept")
    command = (
        "-m",
        "schedule=constant,linear,power",
        "seed=0,1,2,3,4",
        "trainer.max_epochs=3",
        "device=cpu",
    )
    (done,) = forked(here, command)
    assert (done.status, done.err) == (0, "")
    return done, here / done.folder


def losses(folder: Path, schedule: str) -> list[float]:
    """The last validation loss of each seed, from metrics.csv."""
    found = []
    for seed in SEEDS:
        (path,) = folder.glob(f"schedule-{schedule}_seed-{seed}/metrics.csv")
        with path.open(newline="") as file:
            found.append(float(list(csv.DictReader(file))[-1]["val/loss"]))
    return found


def rows(folder: Path) -> dict[str, dict[str, str]]:
    """comparison.md's table of groups, by their overrides."""
    lines = [
        line for line in (folder / "comparison.md").read_text().splitlines() if line.startswith("|")
    ]
    header, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {
        row["overrides"]: row for row in (dict(zip(header, cells, strict=True)) for cells in body)
    }


def test_winner_intervals_and_p_are_those_of_an_independent_calculation(
    swept: tuple[Done, Path],
) -> None:
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
    assert check(folder) == []  # all other numbers, from the runs alone
    *_, winner, command = done.out.splitlines()
    assert winner.startswith(f"winner   schedule={order[0]}")
    assert ("not beyond noise" in winner) == any(
        adjusted[order[0], name] >= 0.05 for name in order[1:]
    )
    assert (
        command == f"to copy  python -m runner schedule={order[0]} trainer.max_epochs=3 device=cpu"
    )


def test_it_says_what_each_group_took_to_reach_the_target(swept: tuple[Done, Path]) -> None:
    """The worst median of the best epochs: the first epoch at least as good, by its last step,
    median over the seeds."""
    _, folder = swept
    curves = {}
    for name in ("constant", "linear", "power"):
        paths = [next(folder.glob(f"schedule-{name}_seed-{seed}/metrics.csv")) for seed in SEEDS]
        curves[name] = [
            [float(row["val/loss"]) for row in csv.DictReader(path.open(newline=""))]
            for path in paths
        ]
    target = max(np.median([min(curve) for curve in each]) for each in curves.values())
    table = rows(folder)
    (column,) = [key for key in next(iter(table.values())) if key.startswith("steps to ")]
    assert column == f"steps to {target:.4g}"
    for name, each in curves.items():
        first = [
            next((40 * (i + 1) for i, v in enumerate(curve) if v <= target), np.inf)
            for curve in each
        ]
        expected = np.median(first)
        assert table[f"schedule={name}"][column] == (
            "never" if np.isinf(expected) else f"{expected:.0f}"
        )


@pytest.mark.slow
def test_compare_says_of_the_same_runs_what_the_multirun_said(
    swept: tuple[Done, Path], tmp_path: Path
) -> None:
    """A folder of runs, and the runs one by one; test/loss is never read."""
    _, folder = swept
    each = ",".join(f"'{path.parent}'" for path in sorted(folder.glob("*/result.json")))
    for runs in (f"'{folder}'", each):
        (done,) = forked(tmp_path, ("task=compare", f"runs=[{runs}]"))
        assert (done.status, done.err) == (0, "")
        path = tmp_path / done.folder
        assert path.parent == tmp_path / "outputs" / "comparisons"
        assert (path / "comparison.md").read_text() == (folder / "comparison.md").read_text()
        assert {"comparison.csv", "comparison.html", "comparison.png"} <= {
            file.name for file in path.iterdir()
        }
    (twice,) = forked(tmp_path, ("task=compare", f"runs=['{folder}','{folder}']"))
    assert twice.status == 2
    assert re.fullmatch(r"error: runs holds .* twice\n", twice.err)


@pytest.mark.slow
def test_with_one_seed_it_says_that_it_cannot_know_and_backends_get_a_parity_table(
    tmp_path: Path,
) -> None:
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
    lines = [
        line.strip("|").split("|") for line in done.out.splitlines() if "keras, lightning" in line
    ]
    assert [line[0].strip() for line in lines] == [
        f"schedule={name} trainer.max_epochs=2 device=cpu trainer.precision=float64"
        for name in ("constant", "linear")
    ]
    for _, _, rate, loss, weights, beyond in lines:
        assert float(rate) == 0
        assert float(loss) < 1e-12
        assert float(weights) < 1e-12
        assert beyond.strip().startswith("none")
    assert (
        len([line for line in done.out.splitlines() if re.match(r"\| [12] +\| schedule=", line)])
        == 2
    )


@pytest.mark.slow
def test_a_failed_job_is_named_and_not_ranked(tmp_path: Path) -> None:
    (done,) = forked(
        tmp_path, ("-m", "optimizer.lr=1e-3,1e30", "seed=0,1", "trainer.max_steps=20", "device=cpu")
    )
    assert done.status == 1
    assert done.out.count("failed: optimizer.lr-1e+30_seed-") == 2
    assert "2 of 4 jobs completed" in done.out
    failed = tmp_path / done.folder / "optimizer.lr-1e+30_seed-0"
    assert read_json(failed / "result.json")["status"] == "failed"
    assert done.out.splitlines()[-2] == "winner   optimizer.lr=0.001"
    assert (
        "  optimizer.lr=1e+30: 2 of 2 seeds diverged (seeds 0, 1); not ranked"
        in done.out.splitlines()
    )


# What task=compare says of runs whose values the tests choose


class Compared(NamedTuple):
    out: str
    folder: Path

    def answer(self, name: str = "answer.json") -> dict[str, Any]:
        """Strict JSON: no NaN."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        text = (self.folder / name).read_text()
        found: dict[str, Any] = json.loads(text, parse_constant=refuse)
        return found

    def groups(self) -> dict[str, dict[str, Any]]:
        return {group["label"]: group for group in self.answer()["groups"]}


def compared(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    values: Mapping[str, Mapping[int, float | None] | Sequence[float | None]],
    **more: Any,
) -> Compared:
    """Overrides -> seed -> the metric after the last epoch, None of a failed run."""
    for overrides, each in values.items():
        seeds = dict(enumerate(each)) if isinstance(each, Sequence) else each
        for seed, last in seeds.items():
            write_run(here / "runs", overrides.split(), seed, last, **more)
    return said(here, capsys)


def said(here: Path, capsys: pytest.CaptureFixture[str]) -> Compared:
    capsys.readouterr()
    compare_task([str(here / "runs")], here)
    (folder,) = (here / "comparisons").iterdir()
    return Compared(capsys.readouterr().out, folder)


def test_groups_with_different_seeds_are_ranked_and_tested_over_the_same_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """linear is better with each seed that both have; the mean of all of constant's is lower."""
    constant, linear = [0.501, 0.514, 0.522, 0.305, 0.29], [0.45, 0.466, 0.468]
    found = compared(tmp_path, capsys, {"schedule=constant": constant, "schedule=linear": linear})
    expected = stats.ttest_rel(constant[:3], linear)
    assert "better than schedule=constant beyond the seeds' noise (p = 0.0012)" in found.out
    assert "compared over the seeds that all have, 0, 1, 2; left out: 3, 4" in found.out
    answer, groups = found.answer(), found.groups()
    assert (answer["metric"], answer["mode"]) == ("val/loss", "min")
    assert (answer["winner"], answer["is_real"]) == ("schedule=linear", True)
    assert shlex.split(answer["command"]) == ["python", "-m", "runner", "schedule=linear"]
    assert [*groups] == ["schedule=linear", "schedule=constant"]
    best, other = groups.values()
    assert (best["overrides"], best["seeds"], other["seeds"]) == (
        ["schedule=linear"],
        [0, 1, 2],
        [0, 1, 2],
    )
    assert best["mean"] == pytest.approx(np.mean(linear), rel=1e-12)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(linear), scale=stats.sem(linear))
    assert best["interval"] == pytest.approx([low, high], rel=1e-12)
    assert (best["difference"], best["difference_interval"], best["p"]) == (None, None, None)
    assert other["difference"] == pytest.approx(np.mean(constant[:3]) - np.mean(linear), rel=1e-12)
    interval = [*expected.confidence_interval(0.95)]
    assert other["difference_interval"] == pytest.approx(interval, rel=1e-9)
    assert (other["p_raw"], other["p"]) == pytest.approx([expected.pvalue] * 2, rel=1e-9)
    # three standard errors of 20,000 draws
    assert best["probability_best"] == pytest.approx(1 - expected.pvalue / 2, abs=0.001)
    assert (best["diverged"], other["diverged"]) == (0, 0)
    assert check(found.folder, [*(tmp_path / "runs").iterdir()]) == []


def test_two_seeds_with_equal_differences_are_never_certain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Use the 256 validation rows that data.json has."""
    values = {
        "schedule=constant": [238 / 256, 240 / 256],
        "schedule=linear": [239 / 256, 241 / 256],
    }
    found = compared(tmp_path, capsys, values, monitor="val/accuracy")
    assert "schedule=constant: 0.003906 less (95 % interval -0.039" in found.out
    assert "better on 0 of 2), within the noise (p = 0.39" in found.out
    assert "winner   schedule=linear (by its mean; not beyond noise)" in found.out
    assert found.answer()["is_real"] is False


@pytest.mark.slow
def test_equal_differences_of_a_loss_tell_nothing_of_the_noise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"schedule=constant": [0.3, 0.4, 0.5], "schedule=linear": [0.2, 0.3, 0.4]}
    found = compared(tmp_path, capsys, values)
    line = "  schedule=constant: 0.1 more, the same in every seed, so the noise is unknown"
    assert line in found.out.splitlines()
    assert (found.answer()["is_real"], found.groups()["schedule=constant"]["p"]) == (False, None)


def test_groups_with_a_seed_that_diverged_or_failed_are_named_and_not_ranked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both would win by the seeds that are left."""
    values: dict[str, list[float | None]] = {
        "schedule=constant": [0.5, 0.6, 0.55],
        "schedule=cosine": [0.7, 0.7, 0.8],
        "schedule=linear": [0.1, math.nan, 0.1],
        "schedule=power": [0.1, None, None],
    }
    found = compared(tmp_path, capsys, values)
    lines = [
        "  schedule=linear: 1 of 3 seeds diverged (seed 1); not ranked",
        "  schedule=power: 2 of 3 seeds failed (seeds 1, 2); not ranked",
    ]
    assert set(lines) <= set(found.out.splitlines())
    assert set(lines) <= set((found.folder / "comparison.md").read_text().splitlines())
    page = (found.folder / "comparison.html").read_text()
    assert all(line.strip() in page for line in lines)
    groups = found.groups()
    order = ["schedule=constant", "schedule=cosine", "schedule=linear", "schedule=power"]
    assert [*groups] == order
    assert [groups[label]["diverged"] for label in order] == [0, 0, 1, 0]
    assert [groups[label]["failed"] for label in order] == [0, 0, 0, 2]
    assert [groups[label]["rank"] for label in order] == [1, 2, None, None]
    assert found.answer()["winner"] == "schedule=constant"
    assert found.answer()["seeds"] == [0, 1, 2]
    assert check(found.folder, [*(tmp_path / "runs").iterdir()]) == []


@pytest.mark.slow
def test_where_no_group_finished_every_seed_it_says_so_of_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"schedule=constant": [0.5, 0.6, None], "schedule=linear": [0.4, None, 0.4]}
    found = compared(tmp_path, capsys, values)
    for line in (
        "  schedule=linear: 1 of 3 seeds failed (seed 1); ranked over its other seeds",
        "  schedule=constant: 1 of 3 seeds failed (seed 2); ranked over its other seeds",
        "winner   schedule=linear (by its mean; not beyond noise) (1 of 3 seeds failed (seed 1))",
    ):
        assert line in found.out.splitlines()
    assert found.answer()["seeds"] == [0]


def test_where_every_seed_diverged_there_is_no_winner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = "RunError: the loss of update 7 is nan"
    write_run(tmp_path / "runs", ["schedule=constant"], 0, None, error=error)
    found = compared(tmp_path, capsys, {"schedule=linear": [math.nan, math.inf]})
    assert "no group has a finite val/loss" in found.out.splitlines()
    assert "  schedule=linear: 2 of 2 seeds diverged (seeds 0, 1); not ranked" in found.out
    assert found.groups()["schedule=constant"]["diverged"] == 1
    assert (found.answer()["winner"], found.answer()["command"]) == (None, None)


def test_a_run_that_has_not_ended_is_named_and_not_ranked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was killed: a config.yaml and no result.json."""
    (write_run(tmp_path / "runs", ["schedule=linear"], 1) / "result.json").unlink()
    found = compared(tmp_path, capsys, {"schedule=constant": [0.5, 0.6], "schedule=linear": [0.1]})
    assert (
        "  schedule=linear: 1 of 2 seeds not finished (seed 1); not ranked"
        in found.out.splitlines()
    )
    assert "unfinished: schedule=linear_1" in found.out.splitlines()
    assert "3 of 4 jobs completed" in found.out.splitlines()


def test_one_epoch_is_a_point_in_the_picture(tmp_path: Path) -> None:
    """A line through one point has no pixels. The right half has the metric, below the legend; the
    second group is orange."""
    from matplotlib.image import imread

    folders = [write_run(tmp_path, [f"schedule={name}"], 0) for name in ("constant", "linear")]
    for folder in folders:
        (folder / "metrics.csv").write_text(
            "epoch,step,train/loss,val/loss,seconds\n1,80,1,0.5,2\n"
        )
    assert compare_task([str(folder) for folder in folders], tmp_path / "out") == 0
    picture = imread(next((tmp_path / "out").glob("**/comparison.png")))[..., :3] * 255
    height, width, _ = picture.shape
    metric = picture[height // 4 :, width // 2 :]
    assert np.any(np.abs(metric - (255, 127, 14)).max(axis=-1) < 2)


def test_no_seed_in_common_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"schedule=constant": {0: 0.5, 1: 0.6}, "schedule=linear": {2: 0.45, 3: 0.5}}
    found = compared(tmp_path, capsys, values)
    assert "the groups have no seed in common, so a difference may come from the seeds" in found.out
    assert "nan" not in found.out
    assert found.groups()["schedule=constant"]["difference"] is None
    assert found.answer()["is_real"] is False


@pytest.mark.slow
def test_a_group_with_too_few_seeds_does_not_take_them_from_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Set aside a group that has a seed of its own alone; the other two are compared over
    theirs."""
    values: dict[str, Any] = {
        "schedule=constant": [0.5, 0.6, 0.55],
        "schedule=cosine": [0.3, 0.43, 0.34],
        "schedule=linear": {7: 0.1},
    }
    found = compared(tmp_path, capsys, values)
    assert "  schedule=linear: too few seeds in common; not ranked" in found.out.splitlines()
    assert (found.answer()["winner"], found.answer()["seeds"]) == ("schedule=cosine", [0, 1, 2])
    p = float(stats.ttest_rel([0.5, 0.6, 0.55], [0.3, 0.43, 0.34]).pvalue)
    assert found.groups()["schedule=constant"]["p"] == pytest.approx(p, rel=1e-9)
    assert check(found.folder, [*(tmp_path / "runs").iterdir()]) == []


def test_bit_identical_runs_are_called_the_same_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"schedule=constant": [0.5, 0.6], "schedule=linear": [0.5, 0.6]}
    found = compared(tmp_path, capsys, values, weights_sha256="0" * 64)
    line = "  schedule=linear: the same run, with bit-identical weights"
    assert line in found.out.splitlines()
    assert "within the noise" not in found.out
    assert "winner   schedule=constant (all groups are the same run)" in found.out
    assert [group["probability_best"] for group in found.groups().values()] == [0.5, 0.5]


def test_the_answer_has_each_difference_with_its_interval_and_what_it_is_corrected_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SciPy gives the interval of the paired difference. The seeds on which it was better count."""
    values = {
        "schedule=linear": [0.48, 0.51, 0.50, 0.47],
        "schedule=cosine": [0.49, 0.50, 0.52, 0.48],
        "schedule=constant": [0.91, 0.93, 0.95, 0.90],
    }
    found = compared(tmp_path, capsys, values)
    answer = found.answer()
    assert answer["comparisons"] == 3
    best = values["schedule=linear"]
    for group in answer["groups"][1:]:
        differences = np.array(values[group["label"]]) - best
        interval = stats.t.interval(0.95, 3, loc=differences.mean(), scale=stats.sem(differences))
        assert group["difference_interval"] == pytest.approx(interval, rel=1e-9)
        assert group["better_on"] == (differences < 0).sum()
    row = rows(found.folder)["schedule=cosine"]
    p = stats.ttest_rel(values["schedule=cosine"], best).pvalue  # the largest: Holm's factor is 1
    assert (row["better on"], row["p"]) == ("1 of 4", f"{p:.2g}")
    assert answer["verdict"] == (
        "schedule=linear has the lowest val/loss on average over 4 seeds. These runs do not show "
        "that it is better than schedule=cosine: the lead is small beside the differences between "
        "seeds."
    )
    assert answer["verdict"] in (found.folder / "comparison.md").read_text()
    page = (found.folder / "comparison.html").read_text()
    drawn = page.partition('<svg id="differences"')[2].partition("</svg>")[0]
    assert drawn.count("<circle") == 2


def test_a_margin_tells_groups_that_are_as_good_as_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"schedule=linear": [0.48, 0.51, 0.50], "schedule=cosine": [0.482, 0.511, 0.501]}
    for choices, losses in values.items():
        for seed, loss in enumerate(losses):
            write_run(tmp_path / "runs", [choices], seed, loss)
    capsys.readouterr()
    compare_task(
        [str(tmp_path / "runs")],
        tmp_path,
        keys=Answer(margin=0.01, test=False, target=None, relax=0.01),
    )
    differences = np.subtract(values["schedule=cosine"], values["schedule=linear"])
    p = stats.ttest_1samp(differences, 0.01, alternative="less").pvalue
    out = capsys.readouterr().out
    assert f"within 0.01 of the best (p = {p:.2g} of two one-sided tests)" in out
    (folder,) = (tmp_path / "comparisons").iterdir()
    assert check(folder, [*(tmp_path / "runs").iterdir()]) == []


@pytest.mark.parametrize("test", [(0.6, 0.5), (0.5, 0.6)])
def test_the_best_two_are_evaluated_on_the_test_split_over_all_seeds(
    tmp_path: Path, test: tuple[float, float]
) -> None:
    """The third group is not evaluated. The runner-up may be ahead there."""
    means = {"linear": 0.4, "cosine": 0.5, "constant": 0.9}
    noise = [0.0, 0.01, 0.03]
    for name, mean in means.items():
        for seed in range(3):
            write_run(tmp_path, [f"schedule={name}"], seed, mean + 0.1 * noise[seed] * mean)
    values = dict(zip(("linear", "cosine"), test, strict=True))
    evaluated = []

    def evaluate(folder: Path) -> dict[str, float]:
        name, seed = re.fullmatch(r"schedule=(.*)_(\d)", folder.name).groups()  # type: ignore[union-attr]
        evaluated.append((name, int(seed)))
        return {"test/loss": values[name] * (1 + noise[int(seed)])}

    (verdict,) = answers(read(sorted(tmp_path.iterdir())))
    tested = on_test.with_test(verdict, evaluate).tested
    assert isinstance(tested, on_test.Tested)
    assert tested.against is not None
    assert sorted(evaluated) == [(name, i) for name in ("cosine", "linear") for i in range(3)]
    expected = [values[name] * (1 + np.mean(noise)) for name in ("linear", "cosine")]
    assert [each.mean for _, each in tested.groups] == pytest.approx(expected, rel=1e-12)
    rows = np.outer(test, 1 + np.array(noise))
    assert tested.against.p == pytest.approx(stats.ttest_rel(*rows).pvalue, rel=1e-9)
    last = tested.sentences(verdict)[-1]
    if test[0] < test[1]:
        assert last.startswith("validation and test agree: schedule=linear is ahead on both")
    else:
        assert last.startswith(
            "validation and test disagree: on the test split schedule=cosine is ahead by 0.1013 ("
        )


def test_a_group_of_the_same_runs_is_no_rival(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It does not take the lead from the winner, and is not the runner-up on the test split."""
    values = {"constant": [0.5, 0.52, 0.51], "step": [0.5, 0.52, 0.51], "linear": [0.9, 0.93, 0.92]}
    for name, losses in values.items():
        for seed, loss in enumerate(losses):
            sha256 = f"{'linear' if name == 'linear' else 'same'}{seed}"
            write_run(tmp_path / "runs", [f"schedule={name}"], seed, loss, weights_sha256=sha256)
    found = said(tmp_path, capsys)
    assert (
        "winner   schedule=constant (the same run as schedule=step; beyond noise for all others)"
    ) in found.out
    (verdict,) = answers(read(sorted((tmp_path / "runs").iterdir())))
    tested = on_test.with_test(verdict, lambda folder: {"test/loss": float(folder.name[-1])}).tested
    assert isinstance(tested, on_test.Tested)
    assert [label for label, _ in tested.groups] == ["schedule=constant", "schedule=linear"]


def test_without_a_test_split_the_comparison_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, ["schedule=linear"], 0)

    def evaluate(_: Path) -> dict[str, float]:
        raise ConfigError("there are no test rows")

    (verdict,) = answers(read(sorted(tmp_path.iterdir())))
    said = on_test.with_test(verdict, evaluate).sentences()
    assert said[-1] == "answer.test: no results, there are no test rows"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["lightning", "keras"])
def test_answer_test_gives_what_task_evaluate_gives(backend: str, tmp_path: Path) -> None:
    sweep = ("-m", "schedule=constant,linear", "seed=0,1", f"backend={backend}", "device=cpu")
    short = ("trainer.max_steps=20", "model=linear", "answer.test=true", "answer.margin=0.1")
    (done,) = forked(tmp_path, (*sweep, *short))
    assert (done.status, done.err) == (0, "")
    assert check(tmp_path / done.folder) == []
    answer = read_json(tmp_path / done.folder / "answer.json")
    for group in answer["test"]["groups"]:
        runs = [
            tmp_path / done.folder / f"{group['label'].replace('=', '-')}_seed-{i}" for i in (0, 1)
        ]
        saved = [read_json(run / "test.json") for run in runs]
        (again,) = forked(tmp_path, ("task=evaluate", f"run={runs[0]}", "device=cpu"))
        assert again.status == 0
        assert read_json(runs[0] / "test.json") == saved[0]
        assert group["mean"] == pytest.approx(np.mean([each["test/loss"] for each in saved]))


@pytest.mark.slow
def test_folds_of_one_data_set_are_paired_like_seeds(tmp_path: Path) -> None:
    """Two schedules, two seeds and three folds are one answer over six pairs, with SciPy's p. Folds
    of another division are not paired with them."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 3))
    np.savez(tmp_path / "a.npz", x=x, y=(x[:, 0] > 0).astype(int))
    command = ["data=npz", "data.path=a.npz", "data.num_folds=3", "trainer.max_epochs=2"]
    command += ["-m", "data.fold=0,1,2", "schedule=constant,cosine", "device=cpu"]
    (done,) = forked(tmp_path, (*command, "seed=0,1"))
    assert (done.status, done.err) == (0, "")
    assert "paired by seed and fold (data.fold=0,1,2), each pair counts as a seed" in done.out
    assert "between folds, " in done.out
    answer = json.loads((tmp_path / done.folder / "answer.json").read_text())
    assert answer["seeds"] == [[seed, fold] for seed in (0, 1) for fold in (0, 1, 2)]
    values = {
        name: [
            read_json(
                next((tmp_path / done.folder).glob(f"*fold-{fold}_*{name}*seed-{seed}*"))
                / "result.json"
            )["metrics"]["val/loss"]
            for seed, fold in answer["seeds"]
        ]
        for name in ("constant", "cosine")
    }
    p = stats.ttest_rel(values["constant"], values["cosine"]).pvalue
    second = answer["groups"][1]
    # both compute the same sums; the values that are saved are exact
    assert second["p_raw"] == pytest.approx(p, rel=1e-9)
    assert check(tmp_path / done.folder) == []
    assert "data.fold" not in answer["command"]
    (other,) = forked(tmp_path, (*command, "data.split_seed=1"))
    (both,) = forked(tmp_path, ("task=compare", f"runs=[{done.folder},{other.folder}]"))
    assert "These runs measure 2 different things" in both.out


def test_runs_of_other_data_losses_or_metrics_are_not_in_one_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two data sets, two losses and two metrics: an answer each. Images and the same pixels in one
    row are the same data, loss=auto is the loss by its name, and an accuracy has no loss."""
    runs = tmp_path / "runs"
    for seed in (0, 1):
        write_run(runs, ["model=linear"], seed, 0.5 + seed / 10)
        write_run(runs, ["loss=cross_entropy"], seed, 0.4 + seed / 10)
        images = {"sha256": "1" * 64, "values_sha256": "2" * 64}
        write_run(runs, ["schedule=cosine"], seed, 0.3, data={"sha256": "3" * 64})
        write_run(runs, ["loss=cross_entropy", "loss.label_smoothing=0.1"], seed, 0.2)
        write_run(runs, ["schedule=step"], seed, 0.9, monitor="val/accuracy", data=images)
        write_run(
            runs,
            ["schedule=step", "loss.label_smoothing=0.2", "loss=cross_entropy"],
            seed,
            0.8,
            monitor="val/accuracy",
            data={**images, "sha256": "4" * 64},
        )
    found = said(tmp_path, capsys)
    assert "These runs measure 4 different things, so they are not in one list." in found.out
    names = ["answer.json", *(f"answer_{i}.json" for i in (2, 3, 4))]
    each = {
        frozenset(tuple(group["overrides"]) for group in found.answer(name)["groups"])
        for name in names
    }
    assert each == {
        frozenset({("model=linear",), ("loss=cross_entropy",)}),
        frozenset({("schedule=cosine",)}),
        frozenset({("loss=cross_entropy", "loss.label_smoothing=0.1")}),
        frozenset(
            {
                ("schedule=step",),
                ("schedule=step", "loss.label_smoothing=0.2", "loss=cross_entropy"),
            }
        ),
    }
    files = {path.name for path in found.folder.iterdir()}
    assert {"comparison_2.html", "comparison_3.png", "comparison_4.html"} <= files
    assert "comparison_5.html" not in files


def test_with_tune_only_the_chosen_are_compared_and_on_other_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two schedules at three rates on seeds 5 to 9, and each at one rate on seeds 0 to 4: p, the
    means and the winner are those of the latter alone, and p is that of one pair."""
    draw = np.random.default_rng(3)
    noise = draw.normal(0, 0.02, 5)
    judged = {
        schedule: (mean + noise + draw.normal(0, 0.004, 5)).tolist()
        for schedule, mean in (("constant", 0.5), ("linear", 0.494))
    }
    tune = ["tune=lr", "tune.seeds=[5,6,7,8,9]"]
    for schedule, values in judged.items():
        for rate, loss in (("0.1", 0.3), ("0.2", 0.2), ("0.4", 0.1)):
            choices = [f"schedule={schedule}", f"optimizer.lr={rate}", *tune]
            for seed in range(5):
                write_run(tmp_path / "runs", choices, 5 + seed, loss)
                if rate == "0.4":
                    write_run(tmp_path / "runs", choices, seed, values[seed])
    found = said(tmp_path, capsys)
    first, second = found.answer()["groups"]
    assert first["label"] == "schedule=linear optimizer.lr=0.4"
    assert (first["seeds"], second["seeds"]) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    assert second["mean"] == pytest.approx(np.mean(judged["constant"]), rel=1e-12)
    expected = stats.ttest_rel(judged["constant"], judged["linear"]).pvalue
    assert (second["p_raw"], second["p"]) == pytest.approx((expected, expected), rel=1e-9)
    assert (
        "optimizer.lr was chosen on seeds 5, 6, 7, 8, 9; the comparison is on seeds 0, 1, 2, 3, 4, "
        "between the chosen ones only"
    ) in found.out
    assert "| schedule=constant optimizer.lr=0.2 | 0.2000   |" in found.out
    assert "largest rate that was tried; try optimizer.lr above 0.4 too" in found.out
    assert check(found.folder, [*(tmp_path / "runs").iterdir()]) == []


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        (("0.1", "0.2", "0.4"), "largest rate that was tried; try optimizer.lr above 0.4 too"),
        pytest.param(
            ("0.4", "0.2", "0.1"),
            "least rate that was tried; try optimizer.lr below 0.1 too",
            marks=pytest.mark.slow,
        ),
        pytest.param(("0.1", "0.4", "0.2"), None, marks=pytest.mark.slow),
        (("0.1", "0.2"), None),  # one of two always is
    ],
)
def test_a_best_rate_at_the_end_of_those_tried_comes_with_what_to_do(
    tmp_path: Path, rates: Sequence[str], said: str | None
) -> None:
    """The last rate of each list has the least loss."""
    for i, rate in enumerate(rates):
        for seed in (0, 1):
            choices = ["schedule=linear", f"optimizer.lr={rate}"]
            write_run(tmp_path / "runs", choices, seed, 0.5 - i / 10)
    (done,) = forked(tmp_path, ("task=compare", "runs=[runs]"))
    assert (done.status, done.err) == (0, "")
    warnings = [line for line in done.out.splitlines() if line.startswith("warning: ")]
    label = f"optimizer.lr={rates[-1]}"
    assert warnings == ([] if said is None else [f"warning: {label} is best at the {said}"])


def test_a_resumed_run_s_seconds_to_the_target_are_left_blank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its metrics.csv counts from the first start, whose start-up result.json does not know; other
    runs took 3.0 s in all, 1.0 s of it to start."""
    write_run(tmp_path / "runs", ["schedule=constant"], 0, 0.5, resumed_from=40)
    write_run(tmp_path / "runs", ["schedule=linear"], 0, 0.5)
    found = rows(said(tmp_path, capsys).folder)
    assert {name: row["seconds"] for name, row in found.items()} == {
        "schedule=constant": "",
        "schedule=linear": "2.00",
    }
