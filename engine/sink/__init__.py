"""Objects on S3 or in a directory: two-phase uploads, and listings of what is there."""
