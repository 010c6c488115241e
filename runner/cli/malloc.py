"""Memory that this process takes from the system and gives back."""

import ctypes
import sys

# malloc.h's names of what mallopt sets
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_pages() -> None:
    """Keep pages that the training frees, for its next step. By default glibc gives large blocks
    back to the system at once, and touching each page anew costs a page fault: up to half the time
    of a network of four million parameters. Only pages that were in use are kept, so that the peak
    stays what it was. Elsewhere than on glibc nothing happens."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # the largest that glibc takes
        mallopt(_M_TOP_PAD, 64 * 2**20)
        mallopt(_M_TRIM_THRESHOLD, 2**30)
