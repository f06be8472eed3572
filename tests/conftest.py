"""Fixtures are plug-ins: each `fix_*.py` holds one kind."""

pytest_plugins = [
    f"tests.fix_{kind}" for kind in ("servers", "program", "network", "faults", "terminal", "cluster", "proxy")
]
