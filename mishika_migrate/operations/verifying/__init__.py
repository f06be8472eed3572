"""Proves that both sides hold the same: rows, verdicts about keys, and what else must be there."""
