"""The main process around the coordinator, and what it tells the outside."""
