"""The main process around the coordinator, and what it shows to the outside."""
