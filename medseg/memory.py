"""How the process keeps memory, for commands that run networks on a CPU."""

from __future__ import annotations

import ctypes

# Of glibc's malloc.h. Set, they are no longer adapted to what the program does.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST, _KEPT = 1 << 26, (1 << 31) - 1  # bytes


def keep_freed() -> None:
    """Keep freed memory for the next layer instead of giving it back to the system.

    By default glibc returns large blocks when they are freed, and the next ones come as new pages
    that the system has to clear: a fifth to a third of the time of a network on a CPU. This holds
    for the whole process, so a library does not do it unasked; `medseg`'s commands do. Blocks of
    more than 64 MiB, such as the logits of many classes, still go back: kept, they would leave
    holes that the next one does not fit in. Elsewhere than on glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGEST)
    mallopt(_M_TRIM_THRESHOLD, _KEPT)
