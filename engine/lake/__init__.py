"""The lake read back: which objects there are, what they say of themselves, and their rows as documents."""
