"""A command of a page (tests/pages.py): lets the test run it, shows what it printed, and ends with
its exit status. `python -S -E tests/page_command.py ADDRESS ARGUMENTS`, for `python -m runner
ARGUMENTS`; it imports little, since a page has many."""

import json
import os
import socket
import sys


def main(address: str, *arguments: str) -> int:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        with connection.makefile("rw") as file:
            print(json.dumps([os.getcwd(), arguments, dict(os.environ)]), file=file, flush=True)
            answer = json.loads(file.readline())
    if answer is None:
        os.execvp("python", ["python", "-m", "runner", *arguments])
    status, out, err = answer
    sys.stdout.write(out)
    sys.stderr.write(err)
    return int(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
