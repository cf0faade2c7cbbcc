"""Backfills: plans, the process that makes them, what is left to load, and Ray."""
