"""Gives each of several test workers its share of the cores, before NumPy makes its threads.

All that counts usable cores (ours, BLAS, programs that tests start) then makes no more threads than
the machine can run at once.  Here and not in tests/, as that conftest imports NumPy.
"""

from __future__ import annotations

import os


def share_cores() -> None:
    """Binds this process to its part of the cores it may use, where pytest-xdist started it."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    count, number = int(os.environ["PYTEST_XDIST_WORKER_COUNT"]), int(worker.removeprefix("gw"))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[number % len(cores) :: count])


share_cores()
