"""The fold in bounded memory: from all rows of a collection to its documents at a time."""
