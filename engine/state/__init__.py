"""The state store: tokens, intents, leases, schemas and plans of backfills."""
