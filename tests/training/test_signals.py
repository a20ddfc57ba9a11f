"""Asking a process to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from lit_long.training.signals import StopRequest


def test_asked_once_and_asked_twice():
    """The first signal is noted, again at once it is the same one, and later it ends the process."""
    script = (
        "import os, signal, time\n"
        "from lit_long.training.signals import StopRequest\n"
        "stop = StopRequest(); stop.listen()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print(stop.wanted, flush=True)\n"
        "time.sleep(2.2)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "print('still there', flush=True)\n"
    )
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, timeout=60)
    assert finished.returncode == -signal.SIGTERM and finished.stdout == "True\n", finished
    assert StopRequest().wanted is False
