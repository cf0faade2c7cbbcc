"""A wall clock that tests can step: a library that adds an offset to it, loaded before all others."""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

_SOURCE = r"""
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long *offset_s;

__attribute__((constructor)) static void start(void) {
    int file = open(getenv("STEPPED_CLOCK"), O_RDONLY);
    void *found = mmap(NULL, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (found != MAP_FAILED) offset_s = found;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME && offset_s) now->tv_sec += *offset_s;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    int failed = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return failed;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}
"""


class SteppedClock:
    """The clock of the processes that are started with ``environment``; skips without a C compiler."""

    def __init__(self, directory: Path) -> None:
        if (compiler := shutil.which("cc")) is None:
            pytest.skip("there is no C compiler")
        directory.mkdir()
        source, library, offset = (directory / name for name in ("clock.c", "clock.so", "offset"))
        source.write_text(_SOURCE)
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
        offset.write_bytes(bytes(8))
        with offset.open("r+b") as file:
            self._offset = mmap.mmap(file.fileno(), 8)
        self.environment = {"LD_PRELOAD": str(library), "STEPPED_CLOCK": str(offset)}

    def step(self, offset_s: int) -> None:
        """Set it this many seconds ahead of the real time."""
        self._offset[:] = struct.pack("l", offset_s)
