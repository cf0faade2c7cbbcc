"""Throughput, CPU and memory, side by side with the server's own limit: ``python -m bench <name>``."""
