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

from runner import checkpoint
from runner.__main__ import main
from runner.data.files import read_npz
from runner.errors import ConfigError, RunError
from runner.spec import TrainState

# what would leave a file named canary, each by another way into Python
TARGETS = {
    "os.mkdir": {"path": "canary"},
    "subprocess.check_call": {"args": ["touch", "canary"]},
    "builtins.open": {"file": "canary", "mode": "w"},
    "pathlib.Path.touch": {"_args_": ["canary"]},
    "shutil.copyfile": {"src": "/etc/hostname", "dst": "canary"},
}
PLACES = (
    "hydra.callbacks.mine", "hydra.launcher", "hydra.sweeper", "hydra.launcher.nested", "hydra.job_logging.handlers.mine",
    "hydra.hydra_logging.formatters.mine", "model", "optimizer", "schedule", "trainer", "mine",
)  # fmt: skip
PAYLOADS = list(product(PLACES, TARGETS, ["said", "in a file"]))


def status(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # main sets it; this puts it back afterwards
    monkeypatch.setattr(sys, "argv", ["runner", *arguments])
    try:
        return main()
    except SystemExit as end:
        return end.code


def test_there_are_a_hundred_of_them() -> None:
    assert len(PAYLOADS) >= 100


@pytest.mark.parametrize(("place", "target", "way"), PAYLOADS)
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
        (tmp_path / "conf" / "experiment" / "evil.yaml").write_text("# @package _global_\n" + json.dumps(body))
        said = ["--config-dir", str(tmp_path / "conf"), "experiment=evil"]
    assert status([*said, "trainer.max_steps=1"], monkeypatch) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert place.split(".")[0] in err or "experiment/evil" in err
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("option", ["--help", "--hydra-help", "--info", "-m", "--cfg=job"])
def test_no_option_comes_before_the_check(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    payload = ["+hydra.callbacks.mine._target_=os.mkdir", "+hydra.callbacks.mine.path=canary"]
    assert status([option, *payload], monkeypatch) == 2
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "said",
    [
        "hydra.run.dir=elsewhere",
        "hydra.sweep.dir=elsewhere",
        "hydra.output_subdir=.hydra",
        "hydra.job.chdir=true",
        "+hydra.job.env_set.PATH=elsewhere",
        "hydra.job.env_copy=[HOME]",
        "hydra.searchpath=[pkg://antigravity]",
        "+hydra.launcher.x='${oc.env:HOME}'",
        "+hydra.launcher.x='${oc.decode:\"{_target_: os.mkdir}\"}'",
    ],
)
def test_hydra_s_own_files_folders_and_environment_stay_as_they_are(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status([said, "trainer.max_steps=1"], monkeypatch) == 2
    assert said.lstrip("+").partition("=")[0].rpartition(".")[0] in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


class Evil:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("open('canary', 'w')",)


@pytest.mark.parametrize("part", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_pickle_in_a_checkpoint_s_place_is_no_checkpoint(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a manifest that has its hash, so that nothing but its form is wrong."""
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
        read_npz(tmp_path / "x.npz")
    (tmp_path / "y.npz").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConfigError, match="cannot be read as NPZ"):
        read_npz(tmp_path / "y.npz")
    assert not (tmp_path / "canary").exists()
