"""What a child process of the tests imports."""

from __future__ import annotations

import os
from pathlib import Path


def python_path(*folders: Path) -> str:
    """A child's `PYTHONPATH`: these folders, then this process's own, in which packages may be that tests use."""
    return os.pathsep.join(filter(None, [*map(str, folders), os.environ.get("PYTHONPATH")]))
