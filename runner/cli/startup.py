"""The time at which this process began."""

import sys
from time import monotonic, time

_IMPORTED = monotonic()  # a tenth of a second after the interpreter's start


def process_start() -> float:
    """Return this process's start by time.monotonic, which nobody sets back."""
    import psutil

    created = float(psutil.Process().create_time())
    if sys.platform == "linux":  # there it is the boot's whole second and the time since the boot
        from time import CLOCK_BOOTTIME, clock_gettime

        age = clock_gettime(CLOCK_BOOTTIME) - (created - psutil.boot_time())
    else:
        age = time() - created
    began = monotonic() - age
    # a shell may have become this process, whose age is then the shell's
    return began if _IMPORTED - began < 5 else _IMPORTED
