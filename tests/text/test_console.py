"""The console's output, and runs whose terminal goes away or whose disk is full."""

import io
import logging
import os
import select
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from runner import dispatcher
from runner.run.run_folder import read_json
from runner.text.console import steady, tree
from tests.command_line import begun, ended, forked, start, together
from tests.rows import slow_but

only_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="its devices and limits are Linux's"
)


def test_a_config_is_drawn_as_a_tree_with_a_branch_per_group() -> None:
    values = {
        "seed": 0,
        "model": {"layers": [{"layer": "dense"}, {"layer": "flatten"}]},
        "metrics": ["a", "b"],
    }
    drawn = """\
config
├── seed: 0
├── model
│   └── layers
│       ├── 0
│       │   └── layer: dense
│       └── 1
│           └── layer: flatten
└── metrics: ['a', 'b']"""
    assert tree(values) == drawn


def test_what_rich_would_take_for_markup_is_drawn_as_it_is() -> None:
    assert tree({"data": {"path": "[red]x[/red].csv"}}).endswith("└── path: [red]x[/red].csv")


# A terminal that takes nothing more

SHORT = ("trainer.max_epochs=3", "device=cpu")


def the_run(here: Path) -> Path:
    (folder,) = (here / "outputs" / "runs").iterdir()
    return folder


@only_linux
def test_a_run_whose_output_the_disk_does_not_take_completes_and_says_so_in_one_line(
    tmp_path: Path,
) -> None:
    """The output is in run.log."""
    err = tmp_path / "err"
    assert ended(begun(tmp_path, *SHORT, out=Path("/dev/full"), err=err), err) == 0
    assert err.read_text() == ""
    assert read_json(the_run(tmp_path) / "result.json")["status"] == "completed"
    assert "completed: 120 steps" in (the_run(tmp_path) / "run.log").read_text()


@only_linux
def test_a_run_whose_reader_goes_away_completes(tmp_path: Path) -> None:
    """Close the pipe after the first line, as `| head -1` does."""
    pipe, err = tmp_path / "pipe", tmp_path / "err"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    child = begun(tmp_path, *SHORT, "trainer.steps_per_call=1", out=pipe, err=err)
    select.select([reader], [], [], 120)
    said = os.read(reader, 6)
    os.close(reader)
    assert said == b"epoch "
    assert ended(child, err) == 0
    assert err.read_text() == ""
    assert read_json(the_run(tmp_path) / "result.json")["status"] == "completed"


@pytest.mark.slow
@only_linux
def test_a_run_whose_terminal_hangs_up_completes(tmp_path: Path) -> None:
    """Draw the progress bar all the while."""
    from pty import openpty

    control, terminal = openpty()
    err = tmp_path / "err"
    more = ("trainer.max_epochs=40", "device=cpu", "trainer.steps_per_call=1")
    child = begun(tmp_path, *more, out=Path(os.ttyname(terminal)), err=err)
    assert os.read(control, 200).startswith(b"train    digits, mlp, adam, ")
    os.close(terminal)  # now that the run has opened it
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("outputs/runs/*/checkpoints/last")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert not list(tmp_path.glob("outputs/runs/*/result.json"))
    os.close(control)
    os.kill(child, signal.SIGHUP)  # as the kernel tells whoever the terminal belongs to
    assert ended(child, err) == 0
    assert err.read_text() == ""
    assert read_json(the_run(tmp_path) / "result.json")["status"] == "completed"


@pytest.mark.slow
@pytest.mark.parametrize(
    "closed",
    slow_but([">&-", ">&- 2>&- <&-", "2>&-"], "2>&-"),
)
def test_a_run_without_standard_streams_completes(tmp_path: Path, closed: str) -> None:
    """The files that it opens do not take their numbers."""
    process = start(tmp_path, *SHORT, shell=f'exec "$@" {closed}')
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert "epoch 1" in out or ">&-" in closed.split()
    assert read_json(the_run(tmp_path) / "result.json")["status"] == "completed"
    assert (the_run(tmp_path) / "config.yaml").read_text().startswith("device: cpu\n")


# A command whose result is what it prints


def command(*printed: str) -> int:
    @steady
    def main() -> int:
        print(*printed, sep="\n")
        return 0

    return main()


@only_linux
def test_what_is_only_printed_and_not_taken_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runner", "--cfg", "job"],
        stdout=os.open("/dev/full", os.O_WRONLY), stderr=subprocess.PIPE, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "error: standard output cannot be written: No space left on device\n"


def test_streams_that_are_not_the_process_s_own_are_left_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine = io.StringIO()
    monkeypatch.setattr(sys, "stdout", mine)
    assert command("a", "b") == 0
    assert mine.getvalue() == "a\nb\n"
    assert sys.stdout is mine


def test_a_library_s_warnings_and_all_deprecations_stay_off_the_terminal() -> None:
    seen: list[str] = []

    @steady
    def main() -> int:
        library = str(Path(np.__file__).with_name("some.py"))
        warnings.warn("old", FutureWarning, stacklevel=1)
        warnings.warn_explicit("chatter", UserWarning, library, 1)
        warnings.warn("odd", UserWarning, stacklevel=1)
        return 0

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_: seen.append(str(message))  # type: ignore[assignment]
        assert main() == 0
    assert seen == ["odd"]


def test_a_library_s_log_lines_stay_off_the_terminal_but_for_errors(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("a.library")

    @steady
    def main() -> int:
        logger.warning("The cache is being built.")
        logger.error("The cache cannot be built.")
        return 0

    assert main() == 0
    logger.warning("after the command")
    assert caplog.messages == ["The cache cannot be built.", "after the command"]


def test_a_run_s_log_has_a_library_s_log_lines(tmp_path: Path) -> None:
    """They come from a function of the user's, which logs as a library does."""
    (tmp_path / "mine.py").write_text(
        "import logging\nimport numpy as np\n"
        "def rows():\n"
        "    logging.getLogger('mine').warning('rows are made')\n"
        "    return np.eye(40, 3), np.arange(40) % 2\n"
    )
    said = ("data=custom", "data._target_=mine.rows", "trusted_modules=[mine]")
    (done,) = forked(tmp_path, (*said, "trainer.max_steps=2", "device=cpu"))
    assert done.status == 0
    assert "rows are made" not in done.out + done.err
    assert "rows are made" in (the_run(tmp_path) / "run.log").read_text().splitlines()


# What else the terminal is told


def test_a_variable_of_the_environment_is_set_aside_during_the_import_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says so; afterwards the user's value is back."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    monkeypatch.delitem(sys.modules, "backends.keras.backend", raising=False)
    seen = []
    monkeypatch.setattr(
        dispatcher, "import_module", lambda name: seen.append(os.environ["KERAS_BACKEND"])
    )
    dispatcher.load("keras")
    assert (seen, os.environ["KERAS_BACKEND"]) == (["tensorflow"], "torch")
    said = "warning: KERAS_BACKEND=torch is ignored: backend=keras needs tensorflow\n"
    assert capsys.readouterr().err == said


@pytest.mark.slow
def test_a_run_on_keras_tells_it_on_the_terminal_and_in_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    (done,) = together(tmp_path, ("backend=keras", *SHORT))
    assert (done.status, done.err) == (0, "")
    said = "warning: KERAS_BACKEND=torch is ignored: backend=keras needs tensorflow"
    assert said in done.out.splitlines()
    assert said in (the_run(tmp_path) / "run.log").read_text()


# A disk that takes nothing more


@only_linux
def test_a_full_disk_is_one_line_wherever_a_run_meets_it(tmp_path: Path) -> None:
    """Refuse rows after the header's 4 bytes by the limit on a file's size, in a process of its
    own."""
    code = f"""
import numpy as np, resource, sys
from pathlib import Path
from runner.errors import RunError
from runner.run.records import Records
from runner.run.run_folder import write_json
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
here, said = Path({str(tmp_path)!r}), []
folder = Records(here, ["epoch"], [])
for write in (
    lambda: folder.trace(0, np.ones(50), {{"learning_rate": np.ones(50)}}),
    lambda: folder.metrics({{"epoch": "1" * 200}}),
    lambda: write_json(here / "result.json", {{"a": "x" * 200}}),
):
    try:
        write()
    except RunError as error:
        said.append(str(error))
folder.__exit__()
print("\\n".join(said))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    names = ["trace.csv", "metrics.csv", "result.json"]
    for line, name in zip(done.stdout.splitlines(), names, strict=True):
        assert line.startswith(f"{tmp_path / name} cannot be written: File too large, ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "trace.csv"]


@pytest.mark.slow
@only_linux
def test_a_run_on_a_full_disk_fails_in_one_line(tmp_path: Path) -> None:
    """`ulimit -f 1`: no file above 1 kB, which config.yaml is."""
    process = start(tmp_path, *SHORT, shell='ulimit -f 1; exec "$@"')
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert "config.yaml cannot be written: File too large, " in err
