"""Every decision of the engine. Nothing here uses a process, a socket, a clock or a library that does.

Functions take ``(state, message, now)`` and return actions; the shell performs them. That is what lets the
simulation in ``tests/sim`` crash, delay and reorder everything, with a seed.
"""
