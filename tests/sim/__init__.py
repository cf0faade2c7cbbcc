"""A seeded simulation of whole engines: the real coordinator, ledger and segmenter among simulated processes."""
