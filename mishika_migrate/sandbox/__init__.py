"""Throw-away Postgres servers and sample data, for the `demo` command, the tests and the benchmarks."""
