"""Where tokens, intents, leases and schemas are kept."""
