"""The start time of this process."""

import sys
from time import monotonic, time

_IMPORTED = monotonic()  # a tenth of a second after the interpreter's start


def process_start() -> float:
    """The start of this process on the clock of time.monotonic, which is never set back."""
    import psutil

    created = float(psutil.Process().create_time())
    if sys.platform == "linux":  # psutil adds the time since boot to boot_time, in whole seconds
        from time import CLOCK_BOOTTIME, clock_gettime

        age = clock_gettime(CLOCK_BOOTTIME) - (created - psutil.boot_time())
    else:
        age = time() - created
    began = monotonic() - age
    # after `exec` in a shell, the process has the age of the shell
    return began if _IMPORTED - began < 5 else _IMPORTED
