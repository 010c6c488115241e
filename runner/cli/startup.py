"""The start time of this process."""

import os
import sys
from pathlib import Path
from time import monotonic, time

_IMPORTED = monotonic()  # a tenth of a second after the interpreter's start


def process_start() -> float:
    """The start of this process on the clock of time.monotonic, which is never set back."""
    if sys.platform == "linux":  # the import of psutil would take 6 ms
        from time import CLOCK_BOOTTIME, clock_gettime

        # the fields after the name in brackets; the 22nd of all is the start, in ticks since boot
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        age = clock_gettime(CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    else:
        import psutil

        age = time() - float(psutil.Process().create_time())
    began = monotonic() - age
    # after `exec` in a shell, the process has the age of the shell
    return began if _IMPORTED - began < 5 else _IMPORTED
