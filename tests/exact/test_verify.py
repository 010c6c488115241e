"""A run in exact mode through the command line: what it certifies, and what task=verify says of it
and of what was changed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.errors import ConfigError, RunError
from runner.run import checkpoint
from runner.run.saved import load_run
from runner.tasks.card import card
from runner.tasks.verify import verify
from tests.command_line import BACKENDS, OTHER, Finished, forked
from tests.exact.common import assert_same_bits
from tests.rows import slow_but
from tests.training import train

ARGUMENTS = (
    "trainer.precision=exact", "device=cpu", "schedule=cosine", "trainer.max_steps=24",
    "trainer.checkpoint_every=8steps",
    "optimizer.layer_decay=0.9", "optimizer.schedules.beta1={name: cosine, final_lr: 0.85}",
)  # fmt: skip
HASHES = ("weights_sha256", "slots_sha256", "losses_sha256")


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    here = tmp_path_factory.mktemp("certified")
    each = forked(here, *((f"backend={backend}", *ARGUMENTS) for backend in BACKENDS))
    assert [done.status for done in each] == [0, 0], each
    return {
        backend: Finished(done, here / done.folder)
        for backend, done in zip(BACKENDS, each, strict=True)
    }


@pytest.fixture
def copied(certified: dict[str, Finished], tmp_path: Path) -> Path:
    """A run's folder that a test may change."""
    return Path(shutil.copytree(certified["lightning"].path, tmp_path / "run"))


def witness_says(
    folder: Path, capfd: pytest.CaptureFixture[str], steps: str | None = None
) -> tuple[int, str]:
    status = verify(load_run(folder, backend="witness"), steps)
    return status, capfd.readouterr().out


def test_result_and_certificate_hold_the_same_hashes_on_both_backends(
    certified: dict[str, Finished],
) -> None:
    results, certificates = (
        [read(certified[backend].path, name) for backend in BACKENDS]
        for name in ("result.json", "certificate.json")
    )
    for found in (*results, *certificates):
        assert {key: found[key] for key in HASHES} == {key: results[0][key] for key in HASHES}
    assert certificates[0]["tensors_sha256"] == certificates[1]["tensors_sha256"]
    assert certificates[0]["data_sha256"] == certificates[1]["data_sha256"]
    assert certificates[0]["steps"] == 24


@pytest.mark.slow
def test_verify_says_identical_on_either_backend(certified: dict[str, Finished]) -> None:
    """Each backend repeats the other's run; the hash that it prints is the one of result.json."""
    here = certified["keras"].path.parents[2]
    lines = [("task=verify", f"run={certified[b].path}", f"backend={OTHER[b]}") for b in BACKENDS]
    for backend, done in zip(BACKENDS, forked(here, *lines), strict=True):
        assert done.status == 0, done
        assert f"identical: steps 0 to 24 on {OTHER[backend]}: 24 losses" in done.out
        assert read(certified[backend].path, "result.json")["weights_sha256"] in done.out


def test_verify_compares_the_hashes_of_a_card(copied: Path) -> None:
    card(copied)
    found = read(copied, "card.json")
    assert {name: found["hashes"][name] for name in HASHES} == {
        name: read(copied, "result.json")[name] for name in HASHES
    }
    assert verify(load_run(copied, backend="witness"), "16..24") == 0
    found["hashes"]["losses_sha256"] = "0" * 64
    (copied / "card.json").write_text(json.dumps(found))
    with pytest.raises(RunError, match=r"different: hashes\.losses_sha256 of"):
        verify(load_run(copied, backend="witness"), "16..24")


def test_verify_refuses_a_card_or_a_certificate_with_another_number(
    copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The files are those of a pushed run, which has no environment.json. The card of a multirun
    has the entry of each job."""
    card(copied)
    (copied / "environment.json").unlink()
    assert verify(load_run(copied, backend="witness"), "16..24") == 0
    saved = (copied / "card.json").read_text()
    for path, value in (
        (("metrics", "val/loss"), 0.001),
        (("seeds", 0), 7),
        (("claim", 0), "best"),
    ):
        found = json.loads(saved)
        found[path[0]][path[1]] = value
        (copied / "card.json").write_text(json.dumps(found))
        with pytest.raises(
            RunError, match=rf"different: {path[0]}\.{path[1]} of .* is {value}, and"
        ):
            verify(load_run(copied, backend="witness"), "16..24")
    (copied / "card.json").unlink()
    groups = [{"rank": 1, "label": "schedule=cosine", "seeds": [0], "mean": 0.5, "p": None}]
    answer = {"metric": "val/loss", "says": ["cosine"], "groups": groups}
    (copied.parent / "answer.json").write_text(json.dumps(answer))
    card(copied.parent)
    assert verify(load_run(copied, backend="witness"), "16..24") == 0
    found = read(copied.parent, "card.json")
    found["jobs"][0]["hashes"]["weights_sha256"] = "0" * 64
    (copied.parent / "card.json").write_text(json.dumps(found))
    with pytest.raises(RunError, match=r"different: jobs\.0\.hashes\.weights_sha256 of"):
        verify(load_run(copied, backend="witness"), "16..24")
    (copied.parent / "card.json").unlink()
    recorded = {**read(copied, "certificate.json"), "slots_sha256": "0" * 64}
    (copied / "certificate.json").write_text(json.dumps(recorded))
    status, out = witness_says(copied, capfd)
    assert (status, "different: slots_sha256 of certificate.json is not" in out) == (1, True)


@pytest.mark.parametrize("steps", [None, "0..16", "16..24"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_witness_repeats_any_stretch(
    certified: dict[str, Finished],
    backend: str,
    steps: str | None,
    capfd: pytest.CaptureFixture[str],
) -> None:
    status, out = witness_says(certified[backend].path, capfd, steps)
    begin, end = (steps or "0..24").split("..")
    assert (status, f"identical: steps {begin} to {end} on witness" in out) == (0, True), out


def test_a_changed_loss_is_told_by_its_step(
    copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The smallest change: the neighbouring float32 of the loss of update 11."""
    path = copied / "trace.csv"
    lines = path.read_text().splitlines()
    place = lines[0].split(",").index("loss")
    cells = lines[12].split(",")
    cells[place] = repr(float(np.nextafter(np.float32(cells[place]), np.float32(9))))
    path.write_text("\n".join([*lines[:12], ",".join(cells), *lines[13:]]) + "\n")
    status, out = witness_says(copied, capfd)
    assert (status, "different: the loss of step 11 on witness" in out) == (1, True), out


def test_a_changed_hash_is_told_by_its_tensor(
    copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    said = read(copied, "certificate.json")
    said["tensors_sha256"]["dense_1/bias"] = "0" * 64
    (copied / "certificate.json").write_text(json.dumps(said))
    status, out = witness_says(copied, capfd)
    assert (status, "different: dense_1/bias after step 24 on witness (1 of" in out) == (1, True), (
        out
    )


def test_another_data_set_is_told(copied: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said = read(copied, "certificate.json")
    (copied / "certificate.json").write_text(json.dumps({**said, "data_sha256": "0" * 64}))
    status, out = witness_says(copied, capfd)
    assert (status, "different: the data is not what the run was trained on" in out) == (1, True), (
        out
    )


def test_a_damaged_checkpoint_is_refused(copied: Path) -> None:
    """One bit of the weights' last byte."""
    (path,) = (copied / "checkpoints" / "16").glob("weights*")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match="the checkpoint is damaged"):
        verify(load_run(copied, backend="witness"), "16..24")


def test_a_forged_checkpoint_is_told_by_the_first_loss(
    copied: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whole by its own hashes, but one weight is the next float32: the losses after it are not
    those of the trace."""
    state, extra = checkpoint.read(copied, 16)
    value = state.weights["dense_1/bias"].copy()
    value[0] = np.nextafter(value[0], np.float32(1))
    shutil.rmtree(copied / "checkpoints" / "16")
    checkpoint.write(
        copied, replace(state, weights={**state.weights, "dense_1/bias": value}), extra
    )
    status, out = witness_says(copied, capfd, "16..24")
    assert status == 1
    assert "different: " in out


@pytest.mark.parametrize("steps", ["8", "8..", "16..16", "0..25", "-1..3"])
def test_stretches_that_the_run_does_not_have_are_refused(
    certified: dict[str, Finished], steps: str
) -> None:
    with pytest.raises(
        ConfigError, match=r"steps must be A\.\.B with 0 <= A < B <= 24, the run's updates, got "
    ):
        verify(load_run(certified["keras"].path, backend="witness"), steps)


@pytest.mark.slow
@pytest.mark.parametrize("backend", slow_but(BACKENDS, "lightning"))
def test_half_on_one_backend_and_half_on_the_other_are_the_bits_of_the_whole(backend: str) -> None:
    overrides = [
        *ARGUMENTS[:3],
        "optimizer=nadam",
        "trainer.max_steps=20",
        "trainer.checkpoint_every=10steps",
    ]
    half = train(backend, overrides, stop_after=10)
    assert half.state.step == 10
    assert_same_bits(
        half.then(train(OTHER[backend], overrides, start=half.state)), train("witness", overrides)
    )
