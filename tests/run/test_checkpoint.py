"""Checkpoints: what is written is what is read, whole or not at all."""

import hashlib
import json
import os
import re
import struct
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from runner.__main__ import main
from runner.errors import ConfigError, RunError
from runner.run import checkpoint
from runner.run.checkpoint import weights_sha256
from runner.spec import TrainState

PARTS = ["weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"]


def state(step: int = 7, dtype: Any = np.float32) -> TrainState:
    random = np.random.Generator(np.random.PCG64(step))

    def some(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(dtype)

    weights = {"dense_0/kernel": some(3, 4), "dense_0/bias": some(4), "batch_norm_0/scale": some(4)}
    slots = {
        slot: {name: some(*w.shape) for name, w in weights.items()}
        for slot in ("first_moment", "second_moment")
    }
    return TrainState(step, weights, slots, {"batch_norm_0/mean": some(4)})


def same(a: Any, b: Any) -> bool:
    """Names, types, shapes and every bit."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_read_is_what_was_written_to_the_last_bit(tmp_path: Path, dtype: Any) -> None:
    written = state(dtype=dtype)
    place = checkpoint.write(tmp_path, written, {"best": {"value": 0.5}, "metrics": {}})
    read, numbers = checkpoint.read(tmp_path, 7)
    assert place == tmp_path / "checkpoints" / "7"
    assert read.step == 7
    assert same(read.weights, written.weights)
    assert same(read.slots, written.slots)
    assert same(read.buffers, written.buffers)
    assert numbers["best"] == {"value": 0.5}


def test_a_state_is_in_one_order_whatever_order_it_comes_in(tmp_path: Path) -> None:
    """Sorted by name when it is made and when it is read, where safetensors returns another order
    each time."""
    made = state()
    turned = {slot: dict(reversed(values.items())) for slot, values in reversed(made.slots.items())}
    again = TrainState(
        7, dict(reversed(made.weights.items())), turned, dict(reversed(made.buffers.items()))
    )
    checkpoint.write(tmp_path, again, {})
    for found in (made, again, checkpoint.read(tmp_path, 7)[0]):
        assert [*found.weights] == ["batch_norm_0/scale", "dense_0/bias", "dense_0/kernel"]
        assert [*found.slots] == ["first_moment", "second_moment"]
        assert [*found.slots["first_moment"]] == [*found.weights]


def test_numbers_that_are_not_finite_and_negative_zero_survive(tmp_path: Path) -> None:
    odd = {"w": np.array([np.nan, np.inf, -np.inf, -0.0, 1e-45], dtype=np.float32)}
    checkpoint.write(tmp_path, TrainState(0, odd, {}, {}), {})
    assert same(checkpoint.read(tmp_path, 0)[0].weights, odd)


def test_a_scalar_and_an_empty_optimizer_survive(tmp_path: Path) -> None:
    weights = {"w": np.array(2.5, dtype=np.float32)}
    checkpoint.write(tmp_path, TrainState(1, weights, {}, {}), {})
    read = checkpoint.read(tmp_path, 1)[0]
    assert same(read.weights, weights)
    assert read.slots == {}


def test_the_folder_holds_the_four_files_of_the_contract_and_nothing_stays_beside_it(
    tmp_path: Path,
) -> None:
    place = checkpoint.write(tmp_path, state(), {})
    assert sorted(path.name for path in place.iterdir()) == sorted(PARTS)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["7"]


def test_the_tensors_are_ordinary_safetensors_and_the_manifest_their_sha256(tmp_path: Path) -> None:
    written = state()
    place = checkpoint.write(tmp_path, written, {})
    assert same(load_file(place / "weights.safetensors"), {**written.weights, **written.buffers})
    hashes = {name: hashlib.sha256((place / name).read_bytes()).hexdigest() for name in PARTS[:3]}
    assert (place / "manifest.json").read_text() == json.dumps(hashes, indent=2)


def test_the_files_are_safetensors_own_bytes(tmp_path: Path) -> None:
    """We write them without its two copies: it says what they are. Names out of order, of more than
    ASCII, a scalar, nothing in one of two axes, two types; and one laid out column by column, of
    which it would write the memory as it lies."""
    some = np.random.default_rng(0).normal
    tensors = {
        "z/kernel": some(size=(3, 5)),
        "dense_10/bias": some(size=4).astype(np.float32),
        "dense_2/bias": some(size=()).astype(np.float32),
        "é": some(size=(2, 0)).astype(np.float32),
    }
    place = checkpoint.write(tmp_path, TrainState(1, tensors, {"first_moment": tensors}, {}), {})
    assert (place / "weights.safetensors").read_bytes() == save(tensors)
    assert (place / "optimizer.safetensors").read_bytes() == save(
        {f"first_moment/{n}": v for n, v in tensors.items()}
    )
    turned = {"kernel": some(size=(3, 5)).T}
    checkpoint.write(tmp_path, TrainState(2, turned, {}, {}), {})
    np.testing.assert_array_equal(
        checkpoint.read(tmp_path, 2)[0].weights["kernel"], turned["kernel"]
    )


def test_writing_a_step_again_replaces_it(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, state(), {"round": 1})
    again = TrainState(7, {"w": np.ones(2, dtype=np.float32)}, {}, {})
    checkpoint.write(tmp_path, again, {"round": 2})
    read, numbers = checkpoint.read(tmp_path, 7)
    assert same(read.weights, again.weights)
    assert numbers["round"] == 2
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["7"]


def test_a_file_of_the_user_s_own_survives_when_its_step_is_written_again_or_removed(
    tmp_path: Path,
) -> None:
    place = checkpoint.write(tmp_path, state(), {})
    (place / "notes.txt").write_text("mine")
    checkpoint.write(tmp_path, TrainState(7, {"w": np.ones(2, dtype=np.float32)}, {}, {}), {})
    assert sorted(path.name for path in place.iterdir()) == sorted([*PARTS, "notes.txt"])
    assert [*checkpoint.read(tmp_path, 7)[0].weights] == ["w"]
    checkpoint.keep(tmp_path, set())
    assert [path.read_text() for path in place.iterdir()] == ["mine"]
    assert checkpoint.steps(tmp_path) == []


def test_what_an_earlier_process_of_this_number_has_left_is_replaced(tmp_path: Path) -> None:
    checkpoint.stage(tmp_path / "run", state(), b"{}")  # and then it was killed
    os.symlink("1", tmp_path / "run" / "checkpoints" / f".last.{os.getpid()}")
    checkpoint.write(tmp_path / "run", state(), {"round": 2})
    checkpoint.point(tmp_path / "run", "last", 7)
    assert checkpoint.read(tmp_path / "run")[1]["round"] == 2
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["7", "last"]


def test_a_write_that_fails_half_way_leaves_no_checkpoint_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.write(tmp_path, state(5), {})
    monkeypatch.setattr(
        "os.rename", lambda source, target: (_ for _ in ()).throw(OSError("no space left"))
    )
    with pytest.raises(OSError, match="no space left"):
        checkpoint.write(tmp_path, state(7), {})
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"has no checkpoint 7; it has 5$"):
        checkpoint.read(tmp_path, 7)
    assert same(checkpoint.read(tmp_path, 5)[0].weights, state(5).weights)


# fsync or rename, the path's name, its bytes (of a folder: its entries)
Event = tuple[str, str, int]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Record the calls to fsync and rename, in order."""
    events: list[Event] = []

    def seen(what: str, path: str) -> None:
        size = len(os.listdir(path)) if os.path.isdir(path) else os.path.getsize(path)
        events.append((what, "/".join(Path(path).parts[-2:]), size))

    sync, rename, replace = os.fsync, os.rename, os.replace

    def fsync(descriptor: int) -> None:
        sync(descriptor)
        seen("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))

    def renamed(move: Any, source: Any, target: Any) -> None:
        move(source, target)
        if not Path(target).is_symlink():
            seen("rename", os.fspath(target))

    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr("os.rename", partial(renamed, rename))
    monkeypatch.setattr("os.replace", partial(renamed, replace))
    return events


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which file a descriptor is of")
def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, recorded: list[Event]
) -> None:
    """A power cut: every part is written whole and synced, then the folder that has them, then it
    gets its name, then that is synced."""
    place = checkpoint.write(tmp_path, state(7), {})
    staged = f".7.{os.getpid()}"
    parts = [("fsync", f"{staged}/{part}", (place / part).stat().st_size) for part in PARTS]
    assert sorted(recorded[:4]) == sorted(parts)
    assert recorded[4:] == [
        ("fsync", f"checkpoints/{staged}", 4),
        ("rename", "checkpoints/7", 4),
        ("fsync", f"{tmp_path.name}/checkpoints", 1),
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc which file a descriptor is of")
def test_a_run_s_records_are_on_the_disk_before_its_checkpoint(
    tmp_path: Path, recorded: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of all updates that a checkpoint knows of; before the first one the config, and the
    folders that have it; at the end the result."""
    monkeypatch.chdir(tmp_path)
    run = [
        "backend=witness",
        "trainer.precision=exact",
        "model=linear",
        "trainer.batch_size=640",
        "trainer.max_steps=4",
    ]
    monkeypatch.setattr(sys, "argv", ["runner", *run])
    assert main() == 0
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    at = {step: recorded.index(("rename", f"checkpoints/{step}", 4)) for step in (2, 4)}
    first = recorded[: at[2]]
    lines = (folder / "trace.csv").read_bytes().splitlines(keepends=True)
    for step in (2, 4):
        before = recorded[: at[step]]
        rows = len(b"".join(lines[: step + 1]))
        sizes = [
            size
            for what, name, size in before
            if (what, name) == ("fsync", f"{folder.name}/trace.csv")
        ]
        assert max(sizes) >= rows  # more, if the next chunk was as quick
        assert any(name == f"{folder.name}/metrics.csv" for _, name, _ in before)
    synced = {name for what, name, _ in first if what == "fsync"}
    assert {
        f"{folder.name}/{name}" for name in ("config.yaml", "data.json", "environment.json")
    } < synced
    assert {f"runs/{folder.name}", "outputs/runs"} < synced
    end = recorded[at[4] :]
    result = next(
        i for i, event in enumerate(end) if event[:2] == ("rename", f"{folder.name}/result.json")
    )
    assert end[result - 1] == ("fsync", f"{folder.name}/.result.json.{os.getpid()}", end[result][2])


def test_last_and_best_follow_the_step_that_they_point_to(tmp_path: Path) -> None:
    for step in (5, 10):
        checkpoint.write(tmp_path, state(step), {})
        checkpoint.point(tmp_path, "last", step)
    checkpoint.point(tmp_path, "best", 5)
    assert [checkpoint.read(tmp_path, which)[0].step for which in ("last", "best", 5, "10")] == [
        10,
        5,
        5,
        10,
    ]


def test_a_file_that_holds_the_step_s_name_does_for_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(target: str, link: str) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.symlink", refuse)
    checkpoint.write(tmp_path, state(5), {})
    checkpoint.point(tmp_path, "last", 5)
    assert (tmp_path / "checkpoints" / "last").read_text() == "5"
    assert checkpoint.read(tmp_path)[0].step == 5


def test_only_the_steps_to_keep_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.write(tmp_path, state(step), {})
    checkpoint.point(tmp_path, "last", 3)
    checkpoint.keep(tmp_path, {1, 3})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "3", "last"]


def test_steps_are_folders_by_their_exact_names_with_a_part_in_them(tmp_path: Path) -> None:
    """A number with a zero before it or of other digits, a file, a link and a folder of the user's
    own are none."""
    assert checkpoint.steps(tmp_path) == []
    for step in (10, 9, 0):
        checkpoint.write(tmp_path, state(step), {})
    places = tmp_path / "checkpoints"
    for name in ("007", "20.bak", "\u00b2", "-1"):
        os.rename(checkpoint.write(tmp_path, state(7), {}), places / name)
    os.symlink("9", places / "8")
    (places / "6").write_text("")
    (places / "5").mkdir()
    (places / "5" / "notes.txt").write_text("mine")
    (places / "10" / "state.json").unlink()  # damaged
    assert checkpoint.steps(tmp_path) == [0, 9, 10]


def test_a_pointer_s_step_is_that_of_its_link_or_of_its_file(tmp_path: Path) -> None:
    """A folder of this name, or no file, is no pointer; it may only name a step."""
    places = tmp_path / "checkpoints"
    places.mkdir()
    assert checkpoint.target(tmp_path, "last") is None
    (places / "last").mkdir()
    assert checkpoint.target(tmp_path, "last") is None
    os.symlink("12", places / "best")  # to nothing
    assert checkpoint.target(tmp_path, "best") == 12
    (places / "best").unlink()
    (places / "best").write_text("30\n")
    assert checkpoint.target(tmp_path, "best") == 30
    for odd in ("../12", "012", ""):
        (places / "best").write_text(odd)
        expected = f"{places / 'best'} must be a link to a step beside it, got {odd or chr(34) * 2}"
        with pytest.raises(RunError, match=f"^{re.escape(expected)}$"):
            checkpoint.target(tmp_path, "best")


def flip(place: Path) -> None:
    content = bytearray((place / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (place / "weights.safetensors").write_bytes(content)


def test_the_newest_whole_checkpoint_is_read_and_what_is_wrong_with_the_others_is_told(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match="has no checkpoint last; it has none"):
        checkpoint.read_newest(tmp_path)
    for step in (2, 4, 11):
        checkpoint.write(tmp_path, state(step), {})
        checkpoint.point(tmp_path, "last", step)
    found, numbers, wrong = checkpoint.read_newest(tmp_path)
    assert (found.step, numbers["step"], wrong) == (11, 11, [])
    flip(tmp_path / "checkpoints" / "11")
    found, numbers, wrong = checkpoint.read_newest(tmp_path)
    assert (found.step, numbers["step"], len(wrong)) == (4, 4, 1)
    assert "checkpoints/11/weights.safetensors does not match its SHA-256" in str(wrong[0])
    (tmp_path / "checkpoints" / "last").unlink()
    flip(tmp_path / "checkpoints" / "4")
    found, _, wrong = checkpoint.read_newest(tmp_path)
    assert found.step == 2
    assert [type(error) for error in wrong] == [checkpoint.MissingError, RunError, RunError]
    flip(tmp_path / "checkpoints" / "2")
    with pytest.raises(ConfigError, match="has no checkpoint last; it has 2, 4, 11"):
        checkpoint.read_newest(tmp_path)


@pytest.mark.parametrize(
    ("step", "best", "pointed", "expected"),
    [
        (10, {"step": 5}, 10, 5),  # what state.json says comes first
        (10, {"step": 10}, None, 10),
        (7, {"step": 7}, None, None),  # it is not there
        (10, {"step": 7}, 5, 5),
        (5, {"step": 10}, 5, 5),  # a later epoch's is none of a run that goes back
        (5, {"step": 10}, None, None),
        (5, None, 10, None),
        (10, None, 5, 5),
        (10, None, None, None),
        (300, {"step": 290}, 300, 300),
    ],
)
def test_the_best_checkpoint_of_a_run_that_goes_on_is_one_that_was_saved_by_then(
    tmp_path: Path, step: int, best: dict[str, int] | None, pointed: int | None, expected: int
) -> None:
    for saved in (5, 10, 300):
        checkpoint.write(tmp_path, state(saved), {})
    if pointed is not None:
        checkpoint.point(tmp_path, "best", pointed)
    assert checkpoint.best_saved(tmp_path, step, best) == expected


@pytest.mark.parametrize("best", [None, 5])
@pytest.mark.parametrize("was_pointed", [False, True])
def test_a_run_that_goes_back_points_there_and_removes_what_a_killed_process_has_left(
    tmp_path: Path, best: int | None, was_pointed: bool
) -> None:
    """Half a checkpoint and half a pointer; not later checkpoints, nor what is the user's own."""
    places = tmp_path / "checkpoints"
    for step in (5, 10, 15):
        checkpoint.write(tmp_path, state(step), {})
    if was_pointed:
        for name in ("last", "best"):
            checkpoint.point(tmp_path, name, 15)
    os.rename(checkpoint.write(tmp_path, state(20), {}), places / ".20.123")
    os.symlink("10", places / ".last.123")
    (places / ".best.99").write_text("10")
    # the user's own
    os.symlink("5", places / ".5.1")
    (places / ".6.1").write_text("")
    (places / ".last.1").mkdir()
    (places / "notes.txt").write_text("mine")
    own = [".5.1", ".6.1", ".last.1", "notes.txt"]
    checkpoint.rewind_to(tmp_path, 10, best)
    pointers = ["last"] if best is None else ["best", "last"]
    assert sorted(os.listdir(places)) == sorted([*own, "5", "10", "15", *pointers])
    assert checkpoint.read(tmp_path)[0].step == 10
    assert checkpoint.target(tmp_path, "best") == best
    assert checkpoint.steps(tmp_path) == [5, 10, 15]


def test_links_where_a_checkpoint_s_files_belong_are_found(tmp_path: Path) -> None:
    places = tmp_path / "checkpoints"
    assert [*checkpoint.links(tmp_path)] == []
    for step in (5, 10, 15):
        checkpoint.write(tmp_path, state(step), {})
        checkpoint.point(tmp_path, "last", step)
    (places / "notes").mkdir()
    os.symlink("notes", places / "mine")
    assert [*checkpoint.links(tmp_path)] == []
    os.rename(places / "5", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", places / "5")
    for part in ("state.json", "manifest.json"):
        os.rename(places / "10" / part, tmp_path / part)
        os.symlink(tmp_path / part, places / "10" / part)
    (places / "last").unlink()
    (places / "last").mkdir()  # it stands for a step, and is no pointer to one
    os.symlink("../elsewhere", places / "best")
    expected = {
        places / "last", places / "best", places / "5",
        places / "10" / "state.json", places / "10" / "manifest.json",
    }  # fmt: skip
    found = [*checkpoint.links(tmp_path)]
    assert len(found) == 5
    assert set(found) == expected
    (tmp_path / "other").mkdir()
    os.symlink(places, tmp_path / "other" / "checkpoints")
    assert [*checkpoint.links(tmp_path / "other")] == [tmp_path / "other" / "checkpoints"]


@pytest.mark.parametrize("part", PARTS[:3])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_noticed_and_named(tmp_path: Path, part: str, damage: str) -> None:
    path = checkpoint.write(tmp_path, state(), {}) / part
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"flip": bytes(content), "cut": bytes(content[:-1]), "empty": b""}[damage])
    with pytest.raises(
        RunError,
        match=f"{part} does not match its SHA-256 in manifest.json: the checkpoint is damaged",
    ):
        checkpoint.read(tmp_path, 7)


@pytest.mark.parametrize("part", PARTS)
def test_a_file_that_is_gone_is_noticed_and_named(tmp_path: Path, part: str) -> None:
    (checkpoint.write(tmp_path, state(), {}) / part).unlink()
    with pytest.raises(RunError, match=rf"is not a whole checkpoint: .*{part}"):
        checkpoint.read(tmp_path, 7)


@pytest.mark.parametrize(
    "manifest",
    ["", "{}", "nonsense", "[]", "null"],
)
def test_a_damaged_manifest_is_noticed(tmp_path: Path, manifest: str) -> None:
    place = checkpoint.write(tmp_path, state(), {})
    (place / "manifest.json").write_text(manifest)
    with pytest.raises(RunError, match=str(place)):
        checkpoint.read(tmp_path, 7)


def rewrite(place: Path, numbers: dict[str, Any]) -> None:
    """Another state.json, with the manifest to fit."""
    (place / "state.json").write_text(json.dumps(numbers))
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["state.json"] = hashlib.sha256((place / "state.json").read_bytes()).hexdigest()
    (place / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("number", [0, 2])
def test_another_format_is_refused_with_both_numbers(tmp_path: Path, number: int) -> None:
    place = checkpoint.write(tmp_path, state(), {})
    rewrite(place, {**json.loads((place / "state.json").read_text()), "format": number})
    expected = f"has checkpoint format {number}; this version reads format 1"
    with pytest.raises(RunError, match=expected):
        checkpoint.read(tmp_path, 7)


def test_tensors_that_are_no_safetensors_are_refused(tmp_path: Path) -> None:
    """The manifest has the right SHA-256, so the part itself must be refused."""
    place = checkpoint.write(tmp_path, state(), {})
    (place / "weights.safetensors").write_bytes(b"no header")
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["weights.safetensors"] = hashlib.sha256(b"no header").hexdigest()
    (place / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="is not a whole checkpoint"):
        checkpoint.read(tmp_path, 7)


@pytest.mark.parametrize("missing", ["format", "step", "buffers"])
def test_a_state_without_a_number_that_it_needs_is_refused(tmp_path: Path, missing: str) -> None:
    place = checkpoint.write(tmp_path, state(), {})
    numbers = json.loads((place / "state.json").read_text())
    del numbers[missing]
    rewrite(place, numbers)
    with pytest.raises(RunError, match=f"is not a whole checkpoint: '{missing}'"):
        checkpoint.read(tmp_path, 7)


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no checkpoint last; it has none"):
        checkpoint.read(tmp_path)
    checkpoint.write(tmp_path, state(5), {})
    with pytest.raises(ConfigError, match=r"has no checkpoint 6; it has 5$"):
        checkpoint.read(tmp_path, 6)
    checkpoint.point(tmp_path, "last", 5)
    checkpoint.point(tmp_path, "best", 6)
    with pytest.raises(ConfigError, match=r"has no checkpoint best; it has 5, best, last$"):
        checkpoint.read(tmp_path, "best")


def test_a_step_is_found_by_its_exact_name_and_only_in_its_own_folder(tmp_path: Path) -> None:
    place = checkpoint.write(tmp_path, state(5), {})
    os.rename(checkpoint.write(tmp_path, state(7), {}), place.with_name("007"))
    os.symlink("5", place.with_name("6"))
    assert checkpoint.find(tmp_path, 5) == checkpoint.find(tmp_path, "5") == place
    for which in ("007", "6", "../checkpoints/5", ".", ""):
        with pytest.raises(checkpoint.MissingError, match=f"has no checkpoint {which}"):
            checkpoint.find(tmp_path, which)


def test_the_weights_hash_is_the_one_that_the_contract_describes() -> None:
    """Names sorted, each its UTF-8 name, its shape (int64) and its values (float32), all
    little-endian, row by row."""
    made = TrainState(
        step=3,
        weights={
            "b/kernel": np.array([[1.0, 2.0], [3.0, 4.0]]),
            "a/bias": np.array([0.5], dtype=np.float32),
        },
        slots={"momentum": {"a/bias": np.array([9.0])}},
        buffers={"a/mean": np.array([-1.0])},
    )
    stream = b"a/bias" + struct.pack("<q", 1) + struct.pack("<f", 0.5)
    stream += b"a/mean" + struct.pack("<q", 1) + struct.pack("<f", -1.0)
    stream += b"b/kernel" + struct.pack("<2q", 2, 2) + struct.pack("<4f", 1.0, 2.0, 3.0, 4.0)
    assert weights_sha256(made) == hashlib.sha256(stream).hexdigest()


def test_the_weights_hash_is_of_values_and_not_of_their_memory() -> None:
    kernel = state().weights["dense_0/kernel"]
    turned = np.asfortranarray(kernel)
    first = weights_sha256(TrainState(0, {"k": kernel}, {}, {}))
    assert weights_sha256(TrainState(9, {"k": turned}, {}, {})) == first
    assert weights_sha256(TrainState(0, {"k": kernel.astype(np.float64)}, {}, {})) == first
    assert weights_sha256(TrainState(0, {"k": kernel.T}, {}, {})) != first
    assert weights_sha256(TrainState(0, {"j": kernel}, {}, {})) != first
