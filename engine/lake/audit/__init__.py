"""The lake compared with itself, and with what the state store knows of it."""
