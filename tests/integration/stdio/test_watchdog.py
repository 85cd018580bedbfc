"""
Tag a real process before it runs, as the watchdog's program is.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mcpbridge.stdio import procfs
from mcpbridge.stdio.process_tags import choose_base
from mcpbridge.stdio.watchdog import set_tag


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tags are for Linux")
def test_tag_is_set_before_the_watchdog_runs() -> None:
    """So it can be found even if it is stopped at once."""
    base = choose_base(os.urandom(8), -1)
    process = subprocess.Popen(["sleep", "600"])
    set_tag(process.pid, base)
    assert procfs.tag_of(process.pid) == base
    process.kill()
    process.wait()
    set_tag(process.pid, base)
    set_tag(None, base)
