"""Only what is used is imported, and everything in conf/ is used."""

import ast
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Collection
from copy import deepcopy
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.cli.compose import CONF, compose
from runner.config.conf_folder import files
from runner.config.schema import Config, parse
from tests.command_line import forked, in_new_process
from tests.rows import slow_but

REPOSITORY = Path(__file__).resolve().parent.parent
FRAMEWORKS = {"torch", "pytorch_lightning", "lightning", "tensorflow", "keras", "jax"}

# Of a group, an option, and what it needs to be said with it.
OPTIONS = sorted((file.parent.name, file.stem) for file in CONF.glob("*/[!_]*.yaml"))
NEEDS = {
    ("data", "npz"): ["data.path=a.npz"],
    **{
        (group, "custom"): [f"{group}._target_=tests.own.halving", "trusted_modules=[tests.own]"]
        for group in ("data", "loss", "model", "optimizer", "schedule")
    },
    ("model", "twin"): [
        "model.lightning._target_=tests.own.halving",
        "model.keras._target_=tests.own.halving",
        "trusted_modules=[tests.own]",
    ],
    ("data", "csv"): ["data.path=a.csv"],
    ("experiment", "speech_digits"): ["data.path=a"],
    ("experiment", "speech_transcription"): ["data.path=a"],
    ("data", "table"): ["data.path=a.csv"],
    ("data", "npy"): ["data.path=a"],
    ("data", "image_folder"): ["data.path=a"],
    ("data", "audio_folder"): ["data.path=a"],
    ("data", "text"): ["data.path=a"],
    ("data", "text_classes"): ["data.path=a"],
    ("data", "datasets"): ["data.path=a"],
    ("data", "huggingface"): ["data.path=a"],
    ("schedule", "from_torch"): ["schedule.class=LinearLR"],
    ("schedule", "from_keras"): [
        "schedule.class=ExponentialDecay",
        "schedule.args={decay_steps: 9, decay_rate: 0.5}",
    ],
    ("schedule", "from_huggingface"): ["schedule.class=cosine", "schedule.args.num_warmup_steps=9"],
    ("schedule", "from_timm"): ["schedule.class=TanhLRScheduler"],
}

# Options that are another one with other values, worked out for a reader.
EXAMPLES = {
    ("schedule", "warmup_cosine"): "cosine",
    ("schedule", "sgdr"): "cosine_restarts",
    ("schedule", "triangular2"): "cyclic",
    ("schedule", "wsd_sqrt"): "sequence",
    ("schedule", "plateau_warmup"): "plateau",
}
# Primitives that are another schedule where nothing else is said: hold is constant, inverse is
# inverse_time, and clip bounds an exponential; a plateau that has seen nothing is what it
# multiplies; from_timm counts epochs, and the table below is of a single one.
ALIKE = {"hold", "inverse", "clip", "from_timm", "plateau", "plateau_warmup"}


def imported_after(code: str, folder: Path) -> set[str]:
    """The frameworks in sys.modules after `code` ran in an interpreter of its own, in `folder`."""
    tell = (
        "import json, sys; print('MODULES', json.dumps(sorted({name.partition('.')[0] for name "
        "in sys.modules})))"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", f"{code}\n{tell}"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("MODULES "))
    return set(json.loads(line.removeprefix("MODULES "))) & FRAMEWORKS


def test_no_module_of_runner_imports_a_framework(tmp_path: Path) -> None:
    code = """
import importlib, pkgutil, runner
names = [module.name for module in pkgutil.walk_packages(runner.__path__, "runner.")]
for name in names:
    importlib.import_module(name)
print(len(names))
assert {"runner.config.schema", "runner.plan", "runner.tasks.train"} <= set(names)
assert {"runner.data.files", "runner.__main__"} <= set(names)
"""
    assert imported_after(code, tmp_path) == set()


# A room imports from itself and from those before it.
ROOMS = [
    *("errors", "random", "section", "text", "user_code", "schedules", "components", "data"),
    *(
        "spec",
        "twins",
        "dispatcher",
        "machine",
        "config",
        "exact",
        "plan",
        "evaluation",
        "run",
        "report",
        "tasks",
        "cli",
    ),
    *("api", "", "__main__"),  # "": the names of the Python API
]


def test_no_import_goes_upwards() -> None:
    upwards = []
    for path in sorted((REPOSITORY / "runner").rglob("*.py")):
        inside = path.relative_to(REPOSITORY / "runner").with_suffix("").parts
        room = ROOMS.index("" if inside == ("__init__",) else inside[0])
        for node in ast.walk(ast.parse(path.read_text())):
            found = node.module if isinstance(node, ast.ImportFrom) else None
            if found == "runner":
                names = [alias.name for alias in node.names]  # type: ignore[union-attr]
            elif found is not None and found.partition(".")[0] in ("runner", "backends"):
                names = [found.removeprefix("runner.").partition(".")[0]]
            else:
                names = []
            upwards += [(str(path), n) for n in names if n not in ROOMS[: room + 1]]
    assert upwards == []


def test_no_imports_go_in_a_circle() -> None:
    """Imports within functions and for types count too."""
    files = [f for room in ("runner", "backends") for f in (REPOSITORY / room).rglob("*.py")]
    names = {".".join(file.relative_to(REPOSITORY).with_suffix("").parts): file for file in files}
    modules = {
        name.removesuffix(".__init__"): ast.parse(f.read_text()) for name, f in names.items()
    }
    imported = {
        name: {
            inner if inner in modules else node.module
            for node in ast.walk(module)
            if isinstance(node, ast.ImportFrom) and node.module in modules
            for inner in (f"{node.module}.{alias.name}" for alias in node.names)
        }
        for name, module in modules.items()
    }
    assert imported["runner.data.table"] >= {"runner.data.columns", "runner.data.table_stream"}
    TopologicalSorter(imported).prepare()  # raises CycleError


RUN = """
import sys
from runner.__main__ import main
sys.argv = ["runner", {overrides}]
assert main() == {status}
"""


def run(folder: Path, *overrides: str, status: int = 0) -> set[str]:
    given = ", ".join(map(repr, [*overrides, "output.root=out"]))
    return imported_after(RUN.format(overrides=given, status=status), folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "own", "other"),
    [
        ("lightning", {"torch", "pytorch_lightning"}, {"tensorflow", "keras", "jax"}),
        # TensorFlow imports jax where it is installed
        pytest.param(
            *("keras", {"tensorflow", "keras"}, {"torch", "pytorch_lightning", "lightning"}),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_imports_its_own_framework_and_not_the_other(
    tmp_path: Path, backend: str, own: set[str], other: set[str]
) -> None:
    """Nor does a tracker: TensorBoard's own writer would import TensorFlow."""
    short = ("trainer.max_steps=2", "device=cpu")
    imported = run(tmp_path, f"backend={backend}", "logger=tensorboard", *short)
    assert own <= imported
    assert not other & imported
    (result,) = tmp_path.glob("out/runs/*/result.json")
    found = json.loads(result.read_text())
    assert (found["status"], found["steps"], found["backend"]) == ("completed", 2, backend)


@pytest.mark.slow
def test_a_wrong_config_is_refused_before_any_framework_is_imported(tmp_path: Path) -> None:
    assert run(tmp_path, "data=diabetes", "loss=cross_entropy", status=2) == set()
    assert run(tmp_path, "trainer.monitor=val/los", status=2) == set()


def test_rates_in_python_import_no_framework(tmp_path: Path) -> None:
    code = (
        "from runner import rates; assert len(rates('schedule=cosine schedule.warmup=5%', "
        "total_steps=100, lr=0.1)) == 100"
    )
    assert imported_after(code, tmp_path) == set()


@cache
def _composed(group: str, option: str) -> dict[str, Any]:
    return compose([f"{group}={option}", *NEEDS.get((group, option), [])])


def composed(group: str, option: str) -> dict[str, Any]:
    return deepcopy(_composed(group, option))


def test_conf_has_the_groups_of_the_contract() -> None:
    assert {"task", "backend", "data", "model", "loss", "optimizer", "schedule", "trainer"} <= {
        g for g, _ in OPTIONS
    }
    assert [path.name for path in CONF.glob("*.yaml")] == ["config.yaml"]
    assert len(OPTIONS) == len(list(CONF.glob("*/[!_]*.yaml")))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_passes_the_check(group: str, option: str) -> None:
    assert isinstance(parse(composed(group, option)), Config)


@pytest.mark.parametrize("group", sorted({group for group, _ in OPTIONS}))
def test_every_option_of_a_group_makes_another_config(group: str) -> None:
    options = [option for of, option in OPTIONS if of == group]
    made = {json.dumps(composed(group, option), sort_keys=True) for option in options}
    assert len(made) == len(options)


# whose keys are Hydra's
@pytest.mark.parametrize(("group", "option"), [of for of in OPTIONS if of[0] != "search"])
def test_every_option_s_file_is_what_the_config_takes_its_values_from(
    group: str, option: str
) -> None:
    """The values of the file and of its bases stand in the composed config: below the group's name,
    or at the top where the file says so."""
    from omegaconf import OmegaConf

    file = CONF / group / f"{option}.yaml"
    whole = composed(group, option)
    merged = OmegaConf.merge(*map(OmegaConf.load, files(group, option)))
    # interpolations find the other keys
    known = OmegaConf.create({**whole, "file": merged})
    said: Any = OmegaConf.to_container(known, resolve=True)["file"]
    said.pop("defaults", None)
    for key, value in list(said.items()):
        if value == "???":
            said[key] = NEEDS[group, option][0].partition("=")[2]
    place = whole if "@package _global_" in file.read_text(encoding="utf-8") else whole[group]
    assert said
    assert holds(place, said)


def holds(place: Any, said: Any) -> bool:
    # of a schedule's parts, whose other keys are filled in
    if isinstance(said, list) and isinstance(place, list):
        return len(said) == len(place) and all(map(holds, place, said))
    if isinstance(said, dict):
        return all(key in place and holds(place[key], value) for key, value in said.items())
    return bool(said in ("???", place))  # ???: NEEDS gives it


@pytest.mark.parametrize(
    ("group", "option"),
    [(g, o) for g, o in OPTIONS if g in ("schedule", "optimizer", "loss", "data")],
)
def test_an_option_s_name_is_its_file_s(group: str, option: str) -> None:
    assert composed(group, option)[group]["name"] == EXAMPLES.get((group, option), option)


def test_every_schedule_of_conf_gives_a_table_of_rates() -> None:
    from runner import rates

    names = [option for group, option in OPTIONS if group == "schedule"]
    tables = {
        name: rates(
            shlex.join([f"schedule={name}", *NEEDS.get(("schedule", name), [])]),
            total_steps=1000,
            lr=0.1,
        )
        for name in names
    }
    assert all(table.shape == (1000,) and np.isfinite(table).all() for table in tables.values())
    assert len({table.tobytes() for name, table in tables.items() if name not in ALIKE}) == len(
        names
    ) - len(ALIKE)


@pytest.mark.slow
@pytest.mark.parametrize(
    "ask", ["torchmetrics.MeanMetric", "torchmetrics.functional.accuracy", "star['MeanMetric']"]
)
def test_lightning_comes_without_the_metrics_that_it_does_not_use_and_they_come_when_asked_for(
    ask: str, tmp_path: Path
) -> None:
    code = f"""
import sys
from backends.lightning import lean
lean.install()
import backends.lightning.backend
assert "torchmetrics.functional" not in sys.modules and "scipy.signal" not in sys.modules
import torchmetrics
assert torchmetrics.__version__
metric, star = torchmetrics.Metric, {{}}
if {ask.startswith("star")}:
    exec("from torchmetrics import *", star)
{ask}
assert torchmetrics.Metric is metric and issubclass(torchmetrics.MeanMetric, metric)
"""
    assert "pytorch_lightning" in imported_after(code, tmp_path)


# Files that use something private of another library
PRIVATE = {
    "backends/keras/own_optimizer.py",  # Keras: the hook of its weight decay
    "backends/lightning/fast.py",  # torch, Lightning
    "backends/lightning/lean.py",  # torchmetrics
    "runner/cli/hydra_bridge.py",  # Hydra
    "runner/config/yaml_files.py",  # OmegaConf
    "runner/run/signals.py",  # the resource tracker of multiprocessing
}


def test_the_named_files_alone_use_what_is_private_of_other_libraries() -> None:
    """An import of a private module, or an attribute that begins with one underscore and that
    nothing here defines."""
    files = [*REPOSITORY.glob("runner/**/*.py"), *REPOSITORY.glob("backends/**/*.py")]
    trees = {str(f.relative_to(REPOSITORY)): ast.parse(f.read_text("utf-8")) for f in files}
    own = {
        name
        for tree in trees.values()
        for node in ast.walk(tree)
        for name in (getattr(node, "name", None), getattr(node, "id", None))
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Name)
    }
    found = set()
    for file, tree in trees.items():
        mine = own | {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in ("self", "cls")
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names = [*(node.module or "").split("."), *(a.name for a in node.names)]
                library = (node.module or "").split(".")[0]
                if library not in ("runner", "backends") and any(map(_is_private, names)):
                    found.add(file)
            elif isinstance(node, ast.Attribute) and _is_private(node.attr, mine):
                found.add(file)
    assert found == PRIVATE


def _is_private(name: str, own: Collection[str] = ()) -> bool:
    """`_replace` is NamedTuple's public method."""
    has_underscore = name.startswith("_") and not name.startswith("__")
    return has_underscore and name not in ("_", "_replace") and name not in own


NOTEBOOK = """
import gc, json, logging, os, signal, sys, warnings
import numpy as np

def state():
    seen = {{
        "environment": dict(os.environ),
        "gc": (gc.isenabled(), gc.get_freeze_count(), gc.get_threshold()),
        "signals": [str(signal.getsignal(n)) for n in sorted(signal.valid_signals())],
        "numpy": np.geterr(),
        "excepthook": str(sys.excepthook),
    }}
    {framework}
    return json.dumps(seen, default=str)

import {package}
before = state()
from runner import load_run
run = load_run({folder!r})
run.model()
run.predict(np.zeros((3, 64)))
after = state()
a, b = json.loads(before), json.loads(after)
assert before == after, {{k: (a[k], b[k]) for k in a if a[k] != b[k]}}
"""
FRAMEWORK_STATE = {
    "lightning": (
        "torch, pytorch_lightning",
        "seen |= {'dtype': torch.get_default_dtype(), 'threads': torch.get_num_threads(), "
        "'grad': torch.is_grad_enabled(), 'deterministic': "
        "torch.are_deterministic_algorithms_enabled()}",
    ),
    "keras": (
        "keras",
        "seen |= {'floatx': keras.config.floatx(), 'policy': keras.config.dtype_policy().name}",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("backend", slow_but(FRAMEWORK_STATE, "lightning"))
def test_a_notebook_that_loads_a_run_finds_its_process_as_it_was(
    tmp_path: Path, backend: str
) -> None:
    """A run in float64, which Keras's global settings would show."""
    package, framework = FRAMEWORK_STATE[backend]
    (done,) = forked(
        tmp_path,
        (f"backend={backend}", "trainer.max_steps=2", "trainer.precision=float64", "device=cpu"),
    )
    assert (done.status, done.err) == (0, "")
    code = NOTEBOOK.format(framework=framework, package=package, folder=done.folder)
    in_new_process(tmp_path, code)
