"""Memory shared by readers and writers."""
