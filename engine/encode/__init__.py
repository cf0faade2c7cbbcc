"""From record batches to the bytes of objects."""
