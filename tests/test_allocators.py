"""Memory that was freed goes back."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys, threading
import pyarrow as pa
from server.allocators import settle_allocators
settle_allocators()
print(pa.default_memory_pool().backend_name)
"""


def test_pyarrow_takes_what_everything_else_takes() -> None:
    """Where it is loaded."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "system"


@pytest.mark.parametrize("module", ["pyarrow", "pandas"])
def test_a_device_loads_nothing_for_it(module: str) -> None:
    """It has none of them."""
    program = f"import sys, server.allocators as it; it.settle_allocators(); print({module!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
