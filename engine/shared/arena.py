"""Memory shared by readers and writers: one arena per engine, divided into slabs.

The arena is anonymous memory (``memfd_create``) that the supervisor creates and its children inherit as a file
descriptor. It has no name, so it leaves nothing to clean up however the engine exits, cannot collide with another
engine's, and does not depend on a container's 64 MiB ``/dev/shm``. Without memfd, an unlinked temporary file is
used instead. The coordinator decides who owns which bytes (``core.grants``).
"""

from __future__ import annotations

import mmap
import os
import tempfile


class Arena:
    """The shared memory. Not a context manager, because it lives as long as its process."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self._map = mmap.mmap(fd, size)

    @classmethod
    def create(cls, size: int) -> Arena:
        """Create ``size`` bytes of shared memory; pages become resident when first touched."""
        if hasattr(os, "memfd_create"):
            fd = os.memfd_create("headrace-slabs", os.MFD_CLOEXEC)
        else:
            fd = os.dup(tempfile.TemporaryFile().fileno())  # noqa: SIM115 - the duplicate keeps it alive
        os.ftruncate(fd, size)
        return cls(fd, size)

    def close(self) -> None:
        """Release the memory, once no slab is in use any more. Idempotent."""
        self._map.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def slab(self, offset: int, size: int) -> memoryview:
        """The bytes of one slab."""
        return memoryview(self._map)[offset : offset + size]
