"""The child processes: how they come to be, and the loops of readers and writers."""
