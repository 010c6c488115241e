"""Functions of the user's own: called where the command line trusts their module, and nowhere
else."""

import sys
from pathlib import Path

import numpy as np
import pytest

from runner import load_run, rates
from runner.errors import ConfigError
from runner.run.run_folder import read_columns, read_json
from tests.command_line import BACKENDS, forked

MODULE = """
from fractions import Fraction
from pathlib import Path

import numpy as np

Path("imported").touch()


def saw(t, total_steps, steps_per_epoch, lr, floor=0.0):
    return lr * (1 - (t % steps_per_epoch) / steps_per_epoch) + floor


def rows(num):
    x = np.random.default_rng(0).normal(size=(num, 3))
    return x, (x.sum(1) > 0).astype(int)


def broken(t, **_):
    return 1 / 0


def one(t, **_):
    return 1.0


number = 7
"""
OWN = (
    "schedule=custom",
    "schedule._target_=mine.saw",
    "data=custom",
    "data._target_=mine.rows",
    "data.num=200",
)
TRUSTED = "trusted_modules=[mine]"
SHORT = ("trainer.max_epochs=2", "device=cpu", "schedule.floor=1e-5")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path


@pytest.mark.slow
def test_own_rates_and_rows_train_alike_on_both_backends(here: Path) -> None:
    """120 rows in batches of 32 are 4 updates an epoch: 1e-3 (1 - k / 4) + 1e-5 for k = 0 ... 3,
    twice. The code is said to be trusted at the start; with the run's folder alone it is not."""
    each = forked(here, *((f"backend={backend}", *OWN, TRUSTED, *SHORT) for backend in BACKENDS))
    folders = [here / done.folder for done in each]
    for done, folder in zip(each, folders, strict=True):
        assert (done.status, done.err) == (0, "")
        assert done.out.startswith(f"trusted  mine  {here / 'mine.py'}\n")
        expected = np.float32([1e-3 * (1 - k / 4) + 1e-5 for k in range(4)] * 2)
        assert np.array_equal(
            read_columns(folder / "trace.csv")["learning_rate"].astype(np.float32), expected
        )
    assert read_json(folders[0] / "data.json") == read_json(folders[1] / "data.json")
    (here / "imported").unlink()
    lines = [
        (f"run={folders[0]}", "task=evaluate"),
        (f"resume={folders[0]}", "trainer.max_epochs=3"),
    ]
    for done in forked(here, *lines):
        assert (done.status, done.out) == (2, "")
        assert done.err == (
            "error: data._target_ is code from mine, which is not trusted; to trust it, add "
            "trusted_modules=[mine] to the command line\n"
        )
    with pytest.raises(ConfigError, match=r"data\._target_ is code from mine"):
        load_run(folders[0])
    assert load_run(folders[0], trusted_modules=["mine"]).config.schedule.name == "custom"
    assert not (here / "imported").exists()
    evaluated, resumed = forked(here, *((*line, TRUSTED) for line in lines))
    assert (evaluated.status, resumed.status) == (0, 0)
    assert read_json(folders[0] / "result.json")["steps"] == 12


def test_as_a_part_of_a_schedule_it_has_the_clock_of_its_phase(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10 updates at the base rate, then the saw with teeth of 4 from there on."""
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # another test's module
    phases = (
        "schedule.phases=[{for: 10steps, name: hold}, {for: rest, name: custom, _target_: "
        "mine.saw}]"
    )
    eta = rates(
        f"schedule=sequence '{phases}' {TRUSTED}", total_steps=16, lr=1.0, steps_per_epoch=4
    )
    assert eta.tolist() == [1.0] * 10 + [1.0, 0.75, 0.5, 0.25, 1.0, 0.75]


OWN_SCHEDULE = "schedule=custom schedule._target_="
UNTRUSTED = (
    "schedule._target_ is code from {0}, which is not trusted; to trust it, add "
    "trusted_modules=[{0}] to the command line"
)
REFUSED = [  # what is said, the error, whether the module is imported for it
    (f"{OWN_SCHEDULE}mine.saw", UNTRUSTED.format("mine"), False),
    (f"{OWN_SCHEDULE}mine.saw trusted_modules=[other]", UNTRUSTED.format("mine"), False),
    (f"{OWN_SCHEDULE}other.mine.saw {TRUSTED}", UNTRUSTED.format("other.mine"), False),
    (f"{OWN_SCHEDULE}mineral.saw {TRUSTED}", UNTRUSTED.format("mineral"), False),
    (
        f"{OWN_SCHEDULE}mine.deep.saw {TRUSTED}",
        (
            "schedule._target_ must be importable, got mine.deep.saw: module 'mine' has no "
            "attribute 'deep'"
        ),
        True,
    ),
    (
        f"{OWN_SCHEDULE}mine.Fraction {TRUSTED}",
        "schedule._target_ must be defined in mine itself, got mine.Fraction of fractions",
        True,
    ),
    (
        f"{OWN_SCHEDULE}saw {TRUSTED}",
        "schedule._target_ must be MODULE.CLASS or MODULE.FUNCTION, got saw",
        False,
    ),
    (
        "trusted_modules=[nowhere]",
        "trusted_modules: no module nowhere can be imported from this folder",
        False,
    ),
    ("trusted_modules=mine", "trusted_modules must be a list, got mine", False),
    (
        f"{OWN_SCHEDULE}mine.absent {TRUSTED}",
        (
            "schedule._target_ must be importable, got mine.absent: module 'mine' has no "
            "attribute 'absent'"
        ),
        True,
    ),
    (
        f"{OWN_SCHEDULE}mine.broken {TRUSTED}",
        "schedule._target_ mine.broken raised ZeroDivisionError: division by zero (mine.py:20)",
        True,
    ),
    (
        f"{OWN_SCHEDULE}mine.number {TRUSTED}",
        "schedule._target_ must be callable, got mine.number of type int",
        True,
    ),
    (
        f"{OWN_SCHEDULE}mine.one {TRUSTED}",
        (
            "schedule._target_ mine.one must return a rate for each of 800 steps, got float64 of "
            "shape []"
        ),
        True,
    ),
    (
        f"data=custom data._target_=mine.one data.t=1 {TRUSTED}",
        (
            "data._target_ mine.one: what it returns must be (x, y), got float; it may also be x, "
            "y and group, a map-style data set, or a dict of these with the keys train, val and "
            "test"
        ),
        True,
    ),
    (
        f"data=custom data._target_=mine.rows data.num=-1 {TRUSTED}",
        (
            "data._target_ mine.rows raised ValueError: negative dimensions are not allowed "
            "(mine.py:15)"
        ),
        True,
    ),
]


@pytest.mark.parametrize(("line", "expected", "imports"), REFUSED)
def test_what_cannot_be_trusted_or_called_is_refused_before_training(
    here: Path, line: str, expected: str, imports: bool
) -> None:
    (done,) = forked(here, (*line.split(), "device=cpu"))
    assert (done.status, done.err) == (2, f"error: {expected}\n")
    assert (here / "imported").exists() == imports
    assert not (here / "outputs").exists()
