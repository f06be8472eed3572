"""Fixtures are plug-ins: each `fix_*.py` holds one kind."""

pytest_plugins = ["tests.fix_servers", "tests.fix_program", "tests.fix_network"]
