"""The shared memory between readers and writers."""
