"""Tables of what has landed: they follow the lake, and are not part of how events get into it."""
