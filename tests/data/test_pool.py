"""Processes that work side by side are never left behind, and one that is killed is told of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from lit_long.config import UserError
from lit_long.data.pool import available_cores, process_pool

REPOSITORY = Path(__file__).parents[2]
SCRIPT = """
import time
from lit_long.data.pool import process_pool
with process_pool(2) as pool:
    jobs = [pool.submit(*job) for job in {jobs}]
    print([jobs[number].result() for number in {awaited}], flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    "jobs, awaited", [("[(len, 'a'), (len, 'b')]", "[0, 1]"), ("[(len, 'a'), (time.sleep, 60), (time.sleep, 60)]", "[0]")]
)
def test_no_worker_outlives_its_parent(jobs, awaited):
    """Neither one that waits for work, nor one that is at it."""
    command = [sys.executable, "-c", SCRIPT.format(jobs=jobs, awaited=awaited)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        process.stdout.readline()
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert len(workers) >= 2
    _, left = psutil.wait_procs(workers, timeout=200)
    for worker in left:
        worker.kill()
    assert not left


def test_a_killed_worker_is_told_of():
    with pytest.raises(UserError, match="was killed .*memory.*processes=1"), process_pool(1) as pool:
        pool.submit(os.kill, pool.submit(os.getpid).result(), signal.SIGKILL).result()


def test_a_script_is_not_run_again(tmp_path):
    """Not as a file, not as a module, and though it has no ``if __name__ == "__main__"``; it keeps its own __main__."""
    (tmp_path / "script.py").write_text(
        "import sys\n"
        "print('run', flush=True)\n"
        "from lit_long.data.pool import process_pool\n"
        "with process_pool(2) as pool:\n"
        "    print(list(pool.map(len, ['a', 'bb', 'ccc'])), sys.modules['__main__'].__file__ == __file__)\n"
    )
    for words in (["script.py"], ["-m", "script"]):
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.stdout == "run\n[1, 2, 3] True\n", done.stdout + done.stderr


def test_cores_are_those_that_may_be_used():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
