"""Backfills: plans, the process that makes them, the work that is left, and Ray."""
