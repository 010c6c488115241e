"""Scripts of the README and of docs/, as a reader pastes them into a shell. In them, `python -m
runner` is a fork of an interpreter that has imported the backend, which saves the seconds of an
import a command; other commands of Python, and those with an environment of their own, are
themselves."""

import json
import os
import shlex
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from runner.run import run_folder
from tests.command_line import ONE_THREAD, REPOSITORY, forked

_COMMAND = Path(__file__).with_name("page_command.py")
_OF_THE_SHELL = ("PWD", "OLDPWD", "SHLVL", "_", "BASH_FUNC_python%%")
_FUNCTION = """
python() {{
  if [ "${{1-}} ${{2-}}" = "-m runner" ]; then {python} -S -E {script} {address} "${{@:3}}"
  else command python "$@"; fi
}}
export -f python
"""


def execute(
    script: str, folder: Path, *arguments: str, is_forked: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder; "$0" and so on are the arguments."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **ONE_THREAD, "PATH": path, "PYTHONPATH": str(REPOSITORY)}
    with ExitStack() as stack:
        if is_forked and sys.platform == "linux":
            address = f"{stack.enter_context(tempfile.TemporaryDirectory())}/socket"
            stack.enter_context(_served(address, environment))
            parts = {"python": sys.executable, "script": str(_COMMAND), "address": address}
            quoted = {key: shlex.quote(part) for key, part in parts.items()}
            script = _FUNCTION.format(**quoted) + script
        command = ["bash", "-euo", "pipefail", "-c", script, *arguments]
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )


@contextmanager
def _served(address: str, environment: Mapping[str, str]) -> Iterator[None]:
    """Run the commands that come to the socket in the block, one after another."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            folder, arguments, variables = json.loads(self.rfile.readline())
            answer = None  # it needs a process of its own, for its environment
            if _without_shell(variables) == _without_shell(environment):
                _wait_for_new_second(Path(folder))
                (done,) = forked(Path(folder), tuple(arguments))
                answer = done.status, done.out, done.err
            self.wfile.write(f"{json.dumps(answer)}\n".encode())

    with socketserver.UnixStreamServer(address, Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield
        server.shutdown()


def _wait_for_new_second(folder: Path) -> None:
    """Wait until no run has this second in its name: pages take the last name for the newest run,
    and a forked run takes less than a second."""
    while any(folder.glob(f"*/*/{run_folder.timestamp()}*")):
        time.sleep(0.02)


def _without_shell(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in _OF_THE_SHELL}
