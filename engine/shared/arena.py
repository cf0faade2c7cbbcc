"""Shared memory between readers and writers: one arena per engine, slabs inside it.

The arena is anonymous memory (``memfd_create``) that the supervisor makes and its children inherit as a file
descriptor. It has no name, so there is nothing to clean up after any exit, nothing of another engine to step
on, and no ``/dev/shm`` of 64 MiB in a container to run out of. Where there is no memfd, an unlinked temporary
file serves. Which bytes are whose is the coordinator's to say (``core.grants``).
"""

from __future__ import annotations

import mmap
import os
import tempfile


class Arena:
    """The shared memory; a context manager would be of no use, because it lives as long as its process."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self._map = mmap.mmap(fd, size)

    @classmethod
    def create(cls, size: int) -> Arena:
        """New shared memory of ``size`` bytes; nothing is resident before it is touched."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("headrace-slabs", os.MFD_CLOEXEC)
        else:
            fd = os.dup(tempfile.TemporaryFile().fileno())  # noqa: SIM115 - the duplicate keeps it alive
        os.ftruncate(fd, size)
        return cls(fd, size)

    def close(self) -> None:
        """Give the memory back, once nobody looks at a slab any more; more than once does no harm."""
        self._map.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def slab(self, offset: int, size: int) -> memoryview:
        """The bytes of one slab."""
        return memoryview(self._map)[offset : offset + size]
