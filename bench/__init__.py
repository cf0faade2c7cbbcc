"""Throughput, CPU and memory, compared with the server's own limit: ``python -m bench <name>``."""
