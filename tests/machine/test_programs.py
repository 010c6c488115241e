"""Compiled programs on disk: a run gets those that earlier runs have listed, with the content that
they had, whatever happened to the files or the processes since."""

import json
import os
import shutil
import signal
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from runner.errors import ConfigError
from runner.machine import programs
from runner.run.run_folder import read_json
from tests.command_line import Done, together

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no file locks")
PARTS = {"threads": 1}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TWINRUN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TWINRUN_CACHE_CHOSEN", "")  # it is restored after the test
    programs.choose()
    return tmp_path / "cache/programs"


def found() -> dict[str, bytes]:
    with programs.opened("keras", PARTS) as folder:
        assert folder is not None
        return {file.name: file.read_bytes() for file in folder.iterdir()}


def keep(**files: bytes) -> Path:
    with programs.opened("keras", PARTS) as folder:
        assert folder is not None
        for name, content in files.items():
            (folder / name).write_bytes(content)
    return folder


def test_another_version_machine_or_number_of_threads_has_a_folder_of_its_own(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(a=b"1")
    assert found() == {"a": b"1"}
    with programs.opened("keras", {"threads": 2}) as other:
        assert other is not None
        assert [*other.iterdir()] == []
    monkeypatch.setattr(programs, "machine", lambda: "another processor")
    assert found() == {}


@pytest.mark.parametrize("damage", [b"", b"12345678", b"1234567", b"123456789!"])
def test_a_damaged_file_is_removed_alone(cache: Path, damage: bytes) -> None:
    folder = keep(a=b"123456789", b=b"other")
    (folder / "a").write_bytes(damage)
    assert found() == {"b": b"other"}
    assert keep(a=b"123456789") == folder
    assert found() == {"a": b"123456789", "b": b"other"}


@pytest.mark.parametrize("text", ["", "[]", '{"a": [9', '{"a": [1, 2, 3]}', "[" * 10**5])
def test_a_damaged_list_costs_a_compilation(cache: Path, text: str) -> None:
    folder = keep(a=b"1")
    (folder.parent / "contents.json").write_text(text)
    assert found() == {}


@pytest.mark.parametrize("name", ["_list_new", "_write"])
def test_what_a_killed_process_wrote_is_not_used(cache: Path, name: str) -> None:
    """It is killed before it lists its file, or before it has replaced the list."""
    keep(a=b"1")
    child = os.fork()
    if child == 0:
        setattr(programs, name, lambda *given: os.kill(os.getpid(), signal.SIGKILL))
        keep(b=b"2")
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert found() == {"a": b"1"}


def test_two_runs_at_once_keep_the_programs_of_both(cache: Path) -> None:
    with programs.opened("keras", PARTS) as first:
        assert first is not None
        (first / "a").write_bytes(b"1")
        with programs.opened("keras", PARTS) as second:
            assert second == first
            assert (second / "a").exists()  # the first one may be writing it
            (second / "b").write_bytes(b"2")
        (first / "c").write_bytes(b"3")
    assert found() == {"a": b"1", "b": b"2", "c": b"3"}


def test_the_folder_used_longest_ago_is_removed_unless_it_is_in_use(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep_one(name: str, age: float) -> Path:
        with programs.opened("keras", {"name": name}) as folder:
            assert folder is not None
            (folder / "a").write_bytes(bytes(100))
        contents = folder.parent / "contents.json"
        os.utime(contents, (contents.stat().st_mtime - age,) * 2)
        return folder

    oldest, old, new = (keep_one(name, age) for name, age in (("a", 3), ("b", 2), ("c", 1)))
    monkeypatch.setattr(programs, "LIMIT", 200)
    with programs.opened("keras", {"name": "a"}) as folder:
        assert folder == oldest
        newest = keep_one("d", 0)
    assert [each.path for each in programs.kept(cache)] == [
        each.parent for each in (newest, new, oldest)
    ]
    assert not old.exists()


def test_a_folder_that_has_grown_too_large_begins_anew(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(a=bytes(100), b=bytes(100))
    monkeypatch.setattr(programs, "FOLDER_LIMIT", 199)
    assert found() == {}


Usage = namedtuple("Usage", "total used free")


def test_nothing_is_kept_where_it_cannot_be(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40, 2**27))
        with programs.opened("keras", PARTS) as folder:
            assert folder is None
    assert "keeps no compiled programs: less than 256 MB are free" in capsys.readouterr().err
    monkeypatch.setenv("TWINRUN_CACHE", "off")
    programs.choose()
    with programs.opened("keras", PARTS) as folder:
        assert folder is None
    assert not cache.exists()


def test_the_folder_must_be_a_folder_that_only_the_user_writes(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with programs.opened("keras", PARTS) as folder:
        assert folder is None
    (cache.parent / "file").touch()
    monkeypatch.setenv("TWINRUN_CACHE", str(cache.parent / "file"))
    with pytest.raises(
        ConfigError,
        match=r"^the environment variable TWINRUN_CACHE must be a folder or off, got /.*, which "
        "is a file$",
    ):
        programs.check()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("~nobody-has-this-name/x", "~nobody-has-this-name is no user's folder"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_name_that_no_folder_can_have_is_refused(
    name: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINRUN_CACHE", name)
    monkeypatch.setenv("TWINRUN_CACHE_CHOSEN", "")
    programs.choose()  # comes first
    with pytest.raises(ConfigError, match=f"^the environment variable .*, {problem}$"):
        programs.check()


def test_a_process_removes_the_folders_of_killed_ones_of_this_machine(cache: Path) -> None:
    """No process has the number 2 ** 22, the largest on Linux. A folder of another machine or
    container stays: its process may live there."""
    own = programs.process_folder(cache)
    killed = own.with_name(own.name.replace(f"-{os.getpid()}-", f"-{2**22}-"))
    elsewhere = own.with_name(killed.name.replace(own.name.split("-")[1], "0" * 8))
    for folder in (own, killed, elsewhere):
        folder.mkdir(parents=True)
    (killed / "now").symlink_to("nothing")
    assert programs.process_folder(cache) != own
    assert sorted(cache.iterdir()) == sorted([own, elsewhere])


@pytest.mark.parametrize("target", ["nothing", "cache", "file"])
def test_a_link_to_nothing_or_to_itself_keeps_nothing(target: str, cache: Path) -> None:
    """TensorFlow would fail a run that cannot make its folder there."""
    (cache.parents[1] / "file").touch()
    cache.parent.symlink_to(target)
    assert programs.usable_root() is None


def test_the_folder_is_the_user_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TWINRUN_CACHE", raising=False)
    monkeypatch.setenv("TWINRUN_CACHE_CHOSEN", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    programs.choose()
    assert programs.root() == tmp_path / "twinrun/programs"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the standard ignores it
    monkeypatch.setenv("HOME", str(tmp_path))
    programs.choose()
    assert programs.root() == tmp_path / ".cache/twinrun/programs"


# --- with the frameworks ---

RUN = ("trainer.max_epochs=2", "schedule=cosine")
COMPILED = {
    "keras": ("backend=keras",),
    "exact": ("backend=keras", "trainer.precision=exact"),
    "lightning": ("trainer.compile=true",),
}


def weights(folder: Path, done: Done) -> str:
    assert done.status == 0, done.err
    return str(read_json(folder / done.folder / "result.json")["weights_sha256"])


@pytest.mark.slow
@pytest.mark.parametrize("way", COMPILED)
def test_runs_with_and_without_kept_programs_have_the_same_bits(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TF_XLA_FLAGS", raising=False)
    monkeypatch.setenv("TWINRUN_CACHE", "off")
    without = together(tmp_path, (*COMPILED[way], *RUN))
    monkeypatch.setenv("TWINRUN_CACHE", str(tmp_path / "cache"))
    first = together(tmp_path, (*COMPILED[way], *RUN))
    kept = programs.kept(tmp_path / "cache/programs")
    second = together(tmp_path, (*COMPILED[way], *RUN))
    assert len({weights(tmp_path, done) for done in (*without, *first, *second)}) == 1
    assert [each.num_files > 0 for each in kept] == [True]
    again = programs.kept(tmp_path / "cache/programs")
    assert [(each.path, each.num_files) for each in again] == [
        (each.path, each.num_files) for each in kept
    ]  # the second compiled nothing
    assert [*(tmp_path / "cache/programs").glob(".*")] == []


@pytest.mark.slow
def test_a_program_that_xla_cannot_read_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sum is right, as if another version had written it."""
    monkeypatch.delenv("TF_XLA_FLAGS", raising=False)
    monkeypatch.setenv("TWINRUN_CACHE", str(tmp_path / "cache"))
    first = together(tmp_path, ("backend=keras", *RUN))
    (kept,) = programs.kept(tmp_path / "cache/programs")
    for file in (kept.path / "files").iterdir():
        file.write_bytes(b"another format")
        listed = {file.name: programs._sum(file)}
    (kept.path / "contents.json").write_text(json.dumps(listed))
    second = together(tmp_path, ("backend=keras", *RUN))
    assert weights(tmp_path, *second) == weights(tmp_path, *first)
    assert [each.num_files for each in programs.kept(tmp_path / "cache/programs")] == [0]
