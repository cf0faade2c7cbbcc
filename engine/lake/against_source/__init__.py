"""A collection in the lake compared with its source."""
