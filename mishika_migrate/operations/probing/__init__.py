"""Asks a running proxy, with keys that the operator gives."""
