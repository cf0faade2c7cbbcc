"""The child processes: how they are started, and the loops of readers and writers."""
