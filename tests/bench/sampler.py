"""Run a program and note, a thousand times a second, which functions it is in.

    python -m tests.bench.sampler SAMPLES app.py --port=18080

A timer of the system interrupts the program, so what is measured runs at its own pace; a profiler
that hears each call would make small functions look dear. At SIGUSR1 the samples are written.
"""

from __future__ import annotations

import json
import runpy
import signal
import sys
import time
from pathlib import Path
from types import CodeType, FrameType

EVERY_S = 0.00097

samples: list[tuple[float, tuple[CodeType, ...]]] = []


def sample(number: int, frame: FrameType | None) -> None:
    stack = []
    while frame:
        stack.append(frame.f_code)
        frame = frame.f_back
    samples.append((time.perf_counter(), tuple(stack)))


def write(number: int, frame: FrameType | None) -> None:
    """Write when each sample was taken, and its functions from the innermost outwards."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    named = [
        (at, [(code.co_filename, code.co_qualname) for code in stack]) for at, stack in samples
    ]
    part = SAMPLES.with_suffix(".part")
    part.write_text(json.dumps(named))
    part.rename(SAMPLES)  # So that whoever waits for the file finds it whole.


if __name__ == "__main__":
    SAMPLES, sys.argv = Path(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGALRM, sample)
    signal.signal(signal.SIGUSR1, write)
    signal.setitimer(signal.ITIMER_REAL, EVERY_S, EVERY_S)
    sys.path[0] = sys.argv[0].rpartition("/")[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
