"""Training: photographs of parts in, model packages out."""

import contextlib
import ctypes
import os
import sys

# Threads that spin while they wait cost the other processes of a busy machine, and themselves, several times the time.
# OpenMP reads it once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if sys.platform == "linux":
    # Memory that a step gives back is kept for the next one: to have it mapped and zeroed anew took a fifth of the time.
    _M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
    with contextlib.suppress(AttributeError):  # a C library without mallopt
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
