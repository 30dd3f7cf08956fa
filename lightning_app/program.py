"""What this program is called by those who type it."""

from __future__ import annotations

import sys
from pathlib import Path

INSTALLED = "lightning-app"


def program() -> str:
    """`lightning-app` where it was installed and so called, else `python main.py`."""
    return INSTALLED if Path(sys.argv[0]).stem == INSTALLED else "python main.py"
