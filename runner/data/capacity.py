"""The limit of data that is held in memory."""

import os


def memory() -> int:
    """The machine's memory in bytes; the address space if the system does not report it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 2**47
