"""Moves the database of a MishikaLLM proxy to another Postgres server; see docs/design.md."""

__version__ = "0.1.0"
