"""Rows back to documents, and documents as far as the lake can tell them apart."""
