"""Scripts of the README and of docs/, as a reader pastes them into a shell. In them, `python -m
runner` is a fork of an interpreter that has imported the backend, which saves the seconds of an
import a command; other commands of Python, and those with an environment of their own, are
themselves."""

import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    with tempfile.TemporaryDirectory() as name:
        server = _Server(f"{name}/socket", environment)
        if is_forked and sys.platform == "linux":
            server.start()
            parts = {"python": sys.executable, "script": str(_COMMAND), "address": f"{name}/socket"}
            quoted = {key: shlex.quote(part) for key, part in parts.items()}
            script = _FUNCTION.format(**quoted) + script
        command = ["bash", "-euo", "pipefail", "-c", script, *arguments]
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )


class _Server(threading.Thread):
    """Runs the commands of one script, one after another."""

    def __init__(self, address: str, environment: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self._environment = environment
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(address)
        self._socket.listen()

    def run(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection, connection.makefile("rw") as file:
                print(json.dumps(self._answer(*json.loads(file.readline()))), file=file, flush=True)

    def _answer(self, folder: str, arguments: list[str], environment: dict[str, str]) -> Any:
        """Return the command's exit status and what it printed; None if it needs a process of its
        own, for its environment."""
        if _without_shell(environment) != _without_shell(self._environment):
            return None
        (done,) = forked(Path(folder), tuple(arguments))
        return done.status, done.out, done.err


def _without_shell(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in _OF_THE_SHELL}
