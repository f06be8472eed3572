"""Fixtures are plug-ins: each `fix_*.py` holds one kind."""

import os
import shutil
import signal
import tempfile
from pathlib import Path

pytest_plugins = [
    f"tests.fix_{kind}" for kind in ("servers", "program", "network", "faults", "terminal", "cluster", "proxy", "moves")
]

# Every test clones two databases of some 300 files each: 0.02 s a clone in memory, 0.2 to 0.4 s on a
# disk whose file system is slow to create files.
_MEMORY = Path("/dev/shm")
_ENOUGH = 8 << 30

if "TMPDIR" not in os.environ and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _ENOUGH:
    os.environ["TMPDIR"] = str(_MEMORY)
    tempfile.tempdir = None

# Started by nohup, every program of the tests would ignore a hangup.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
