"""Nothing that a config, a file of --config-dir or a checkpoint holds is imported or run."""

import hashlib
import json
import pickle
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from runner import user_code
from runner.__main__ import main
from runner.data.files import read_npz
from runner.errors import ConfigError, RunError
from runner.run import checkpoint
from runner.spec import TrainState
from tests.rows import slow_but

# what would leave a file named canary, each by another way into Python
TARGETS = {
    "os.mkdir": {"path": "canary"},
    "subprocess.check_call": {"args": ["touch", "canary"]},
    "builtins.open": {"file": "canary", "mode": "w"},
    "pathlib.Path.touch": {"_args_": ["canary"]},
    "shutil.copyfile": {"src": "/etc/hostname", "dst": "canary"},
}
PLACES = (
    "hydra.callbacks.mine", "hydra.launcher", "hydra.sweeper", "hydra.launcher.nested",
    "hydra.job_logging.handlers.mine",
    "hydra.hydra_logging.formatters.mine", "model", "optimizer", "schedule", "trainer", "mine",
)  # fmt: skip
PAYLOADS = list(product(PLACES, TARGETS, ["said", "in a file"]))


def status(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "argv", ["runner", *arguments])
    try:
        return main()
    except SystemExit as end:
        return end.code


def test_there_are_a_hundred_of_them() -> None:
    assert len(PAYLOADS) >= 100


def rows() -> list[Any]:
    """All pairs; by default one target in every place, and every target in one place."""
    return [
        pytest.param(
            *(place, target, way),
            marks=() if target == "os.mkdir" or place == "hydra.launcher" else pytest.mark.slow,
        )
        for place, target, way in PAYLOADS
    ]


@pytest.mark.parametrize(("place", "target", "way"), rows())
def test_a_hostile_target_is_refused_by_its_key(
    place: str,
    target: str,
    way: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """`()` is what logging.config calls a factory."""
    monkeypatch.chdir(tmp_path)
    name = "()" if "logging" in place else "_target_"
    payload = {name: target, **TARGETS[target]}
    if way == "said" and name == "_target_":
        said = [
            f"+{place}.{key}={json.dumps(value)}" if key != name else f"++{place}.{key}={value}"
            for key, value in payload.items()
        ]
    else:
        (tmp_path / "conf" / "experiment").mkdir(parents=True)
        body: Any = payload
        for part in reversed(place.split(".")):
            body = {part: body}
        (tmp_path / "conf" / "experiment" / "evil.yaml").write_text(
            "# @package _global_\n" + json.dumps(body)
        )
        said = ["--config-dir", str(tmp_path / "conf"), "experiment=evil"]
    assert status([*said, "trainer.max_steps=1"], monkeypatch) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert place.split(".")[0] in err or "experiment/evil" in err
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("option", ["--help", "--hydra-help", "--info", "-m", "--cfg=job"])
def test_no_option_comes_before_the_check(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    payload = ["+hydra.callbacks.mine._target_=os.mkdir", "+hydra.callbacks.mine.path=canary"]
    assert status([option, *payload], monkeypatch) == 2
    assert not (tmp_path / "canary").exists()


SET = "cannot be set"  # what Hydra's part is told
INTERPOLATION = "may only refer to keys of the config"
JOBLIB, LOCAL, SLURM = (
    ("-m", f"hydra/launcher={name}") for name in ("joblib", "submitit_local", "submitit_slurm")
)
SEARCH = ("-m", "search=optuna_lr")
NOT_TAKEN: list[tuple[tuple[str, ...], str]] = [  # the arguments; the last one is about
    # Hydra's own files, folders and environment
    (("hydra.run.dir=elsewhere",), f"hydra.run.dir {SET}"),
    (("hydra.sweep.dir=elsewhere",), f"hydra.sweep.dir {SET}"),
    (("hydra.sweep.subdir=../elsewhere",), f"hydra.sweep.subdir {SET}"),
    (("hydra.output_subdir=.hydra",), f"hydra.output_subdir {SET}"),
    (("hydra.job.chdir=true",), f"hydra.job.chdir {SET}"),
    (("+hydra.job.env_set.PATH=elsewhere",), f"hydra.job.env_set.PATH {SET}"),
    (("hydra.job.env_copy=[HOME]",), "hydra.job.env_"),
    (("hydra.mode=MULTIRUN",), f"hydra.mode {SET}"),
    (("hydra.verbose=true",), f"hydra.verbose {SET}"),
    (("~hydra.run.dir",), "hydra.run.dir cannot be removed"),
    (("hydra.searchpath=[pkg://antigravity]",), "hydra.searchpath is not supported"),
    (("hydra/job_logging=default",), f"hydra/job_logging {SET}"),
    (("hydra/hydra_logging=colorlog",), f"hydra/hydra_logging {SET}"),
    (("hydra/help=default",), f"hydra/help {SET}"),
    (("hydra/launcher=nope",), "hydra/launcher must be one of pool, basic, joblib"),
    # logging
    (("+hydra.job_logging.formatters.x.format=ext://os.environ",),
        f"hydra.job_logging.formatters.x.format {SET}"),
    (("+hydra.job_logging.handlers.x={class: logging.FileHandler, filename: f, mode: w}",),
        f"handlers.x.class {SET}"),
    # launchers and sweepers
    (("+hydra.launcher.x=1",), "hydra.launcher.x"),
    (("+hydra.launcher.x='${oc.env:HOME}'",), "hydra.launcher.x"),
    ((*JOBLIB, "hydra.launcher.n_jobs=many"), "hydra.launcher.n_jobs"),
    ((*JOBLIB, "hydra.launcher.n_jobs='${seed}'"), "hydra.launcher.n_jobs"),
    ((*JOBLIB, "hydra.launcher.n_jobs=0"),
        "hydra.launcher.n_jobs must be auto, an integer >= 1, or -1 for all cores, got 0"),
    ((*JOBLIB, "hydra.launcher.temp_folder=elsewhere"), f"hydra.launcher.temp_folder {SET}"),
    ((*JOBLIB, "hydra.launcher.pre_dispatch='__import__(1)'"),
        f"hydra.launcher.pre_dispatch {SET}"),
    ((*LOCAL, "hydra.launcher.submitit_folder=elsewhere"), f"hydra.launcher.submitit_folder {SET}"),
    ((*SLURM, "hydra.launcher.setup=['touch canary']"), f"hydra.launcher.setup {SET}"),
    ((*SLURM, "hydra.launcher.partition='a b;c'"), "hydra.launcher.partition must be a word"),
    ((*SLURM, "hydra.launcher.timeout_min=0"),
        "hydra.launcher.timeout_min must be an integer >= 1, got 0"),
    ((*SEARCH, "hydra.sweeper.storage=sqlite:///elsewhere.db"), f"hydra.sweeper.storage {SET}"),
    ((*SEARCH, "hydra.sweeper.study_name=mine"), f"hydra.sweeper.study_name {SET}"),
    ((*SEARCH, "hydra.sweeper.custom_search_space=os.mkdir"),
        f"hydra.sweeper.custom_search_space {SET}"),
    ((*SEARCH, "hydra.sweeper.sampler._target_=os.mkdir"), f"hydra.sweeper.sampler._target_ {SET}"),
    ((*SEARCH, "hydra.sweeper.direction=up"), "hydra.sweeper.direction must be minimize"),
    ((*SEARCH, "hydra.sweeper.n_trials=0"),
        "hydra.sweeper.n_trials must be an integer from 1 to 10000, got 0"),
    ((*SEARCH, "hydra.sweeper.n_trials=1.5"), "hydra.sweeper.n_trials"),
    ((*SEARCH, "hydra/sweeper/pruner=asha", "hydra.sweeper.pruner.reduction_factor=1"),
        "hydra.sweeper.pruner.reduction_factor must be an integer >= 2"),
    ((*SEARCH, "+hydra.sweeper.conditions={optimizer: {hydra.output_subdir: elsewhere}}"),
        "hydra.sweeper.conditions"),
    (("-m", "+hydra.sweeper.params={hydra.output_subdir: elsewhere}"),
        "must name a key of the config"),
    (
        ("-m", (
            "+hydra.sweeper.params={hydra.job_logging.formatters.x: '{(): os.mkdir, path: "
            "canary}'}"
        )),
        "must name a key of the config",
    ),
    # what is text while it is checked and something else when it is resolved
    (("model.name='${oc.decode:\"{_target_: os.mkdir}\"}'",), f"model.name {INTERPOLATION}"),
    (("model.name='${oc.env:HOME}'",), f"model.name {INTERPOLATION}"),
    (("output.multirun=env", "model.name='${oc.${output.multirun}:HOME}'"),
        f"model.name {INTERPOLATION}"),
    (("model.name='${hydra:runtime.cwd}'",), f"model.name {INTERPOLATION}"),
    (("metrics=['${oc.create:{a: 1}}']",), f"metrics[0] {INTERPOLATION}"),
    (("model.name='${hydra.runtime.cwd}'",), "model.name"),
    # _target_ wherever it stands
    (("optimizer.groups=[{_target_: os.mkdir, path: canary}]",),
        "optimizer.groups[0]._target_ is not allowed"),
    (("+schedule.args={x: [{_target_: os.mkdir}]}",), "schedule.args.x[0]._target_ is not allowed"),
]  # fmt: skip


# the files of every fourth row stand for the others: each is composed anew
@pytest.mark.parametrize(
    ("way", "arguments", "said"),
    [
        pytest.param(
            way,
            *row,
            marks=pytest.mark.slow if way == "in a file" and i % 4 else (),
            id=f"{way}-{' '.join(row[0])}",
        )
        for way in ("said", "in a file")
        for i, row in enumerate(NOT_TAKEN)
    ],
)
def test_what_hydra_would_act_on_is_allowed_by_name_or_refused(
    arguments: tuple[str, ...],
    said: str,
    way: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The same from a file of --config-dir, where a file can hold it."""
    monkeypatch.chdir(tmp_path)
    *before, last = arguments
    key, _, value = last.lstrip("+").partition("=")
    if way == "in a file" and key[0] != "~" and "/" not in key and key != "hydra.searchpath":
        (tmp_path / "conf" / "experiment").mkdir(parents=True)
        body: Any = OverridesParser.create().parse_overrides([f"key={value}"])[0].value()
        for part in reversed(key.split(".")):
            body = {part: body}
        file = tmp_path / "conf" / "experiment" / "evil.yaml"
        file.write_text("# @package _global_\n" + json.dumps(body))
        arguments = (*before, "--config-dir", str(tmp_path / "conf"), "experiment=evil")
    there = sorted(tmp_path.rglob("*"))
    assert status([*arguments, "trainer.max_steps=1"], monkeypatch) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert said in err
    assert len(err.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == there


def test_nor_is_a_pickle_to_run_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert status(["--experimental-rerun", "config.pickle"], monkeypatch) == 2
    assert capfd.readouterr().err.startswith("error: --experimental-rerun is not supported")


def test_a_module_s_origin_is_said_before_anything_of_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its package is not imported to look for it either."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evilmod").mkdir()
    (tmp_path / "evilmod" / "__init__.py").write_text("open('canary', 'w')")
    (tmp_path / "evilmod" / "part.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert status(["trusted_modules=[evilmod.x]"], monkeypatch) == 2
    assert "no module evilmod.x can be imported" in capfd.readouterr().err
    user_code.announce(["evilmod.part"])
    assert capfd.readouterr().out.startswith("trusted  evilmod.part  ")
    assert not (tmp_path / "canary").exists()


def test_a_trusted_module_s_function_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that it imports, such as `system`, belongs to another module."""
    (tmp_path / "trusted_by_name.py").write_text("from os import system")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        ValueError, match=r"must be defined in trusted_by_name itself, got .* of posix"
    ):
        user_code.call("trusted_by_name.system", "touch canary")


@pytest.mark.parametrize(
    "key",
    ["run: outputs", "resume: outputs", "format: keras", "checkpoint: 3", "trusted_modules: [os]"],
)
def test_what_only_the_command_line_says_is_not_ignored_in_a_file(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{key}\n")
    assert status(["--config-dir", ".", "experiment=mine"], monkeypatch) == 2
    name = key.partition(":")[0]
    assert capfd.readouterr().err.startswith(
        f"error: {name} can only be set on the command line, not in a file"
    )


class Evil:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("open('canary', 'w')",)


@pytest.mark.parametrize("part", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_pickle_in_a_checkpoint_s_place_is_no_checkpoint(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest has its hash, so only its form is wrong."""
    monkeypatch.chdir(tmp_path)
    place = checkpoint.write(tmp_path, TrainState(1, {"w": np.zeros(2)}, {}, {}), {})
    (place / part).write_bytes(pickle.dumps(Evil()))
    hashes = {
        name: hashlib.sha256((place / name).read_bytes()).hexdigest()
        for name in ("weights.safetensors", "optimizer.safetensors", "state.json")
    }
    (place / "manifest.json").write_text(json.dumps(hashes))
    with pytest.raises(RunError, match="is not a whole checkpoint"):
        checkpoint.read(tmp_path, 1)
    assert not (tmp_path / "canary").exists()


def test_nor_is_one_in_a_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "x.npz", x=np.array([Evil()], dtype=object), y=np.zeros(1, int))
    with pytest.raises(ConfigError, match="cannot be read as NPZ"):
        read_npz(tmp_path / "x.npz", "x")
    (tmp_path / "y.npz").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConfigError, match="cannot be read as NPZ"):
        read_npz(tmp_path / "y.npz", "x")
    assert not (tmp_path / "canary").exists()


IN_LISTS = ["[{_target_: os.mkdir, path: canary}]", "[[{_target_: os.mkdir, path: canary}]]"]


@pytest.mark.parametrize("way", slow_but(["said", "in a file"], "said"))
@pytest.mark.parametrize("value", IN_LISTS)
@pytest.mark.parametrize("key", ["mine", "model.layers", "metrics", "runs", "schedule.of"])
def test_a_target_inside_a_list_is_refused(
    key: str,
    value: str,
    way: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    said = [f"++{key}={value}"]
    if way == "in a file":
        group, _, name = key.rpartition(".")
        (tmp_path / "mine" / "experiment").mkdir(parents=True)
        body = f"{group}:\n  {name}: {value}\n" if group else f"{name}: {value}\n"
        (tmp_path / "mine" / "experiment" / "bad.yaml").write_text(f"# @package _global_\n{body}")
        said = ["--config-dir", "mine", "experiment=bad"]
    assert status(said, monkeypatch) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert "_target_" in err or key.partition(".")[0] in err
    assert {path.name for path in tmp_path.iterdir()} <= {"mine"}
