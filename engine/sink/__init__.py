"""Objects on S3 or in a directory: two-phase uploads, and what lies there."""
