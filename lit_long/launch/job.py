"""A stage as a job of a cluster: what each of its nodes does, and the note by which a later sweep finds the job again.

The sweep that watches a stage holds its ``lock``, the job that runs it ``job.lock``, from its first node. So when the sweep dies the job
goes on; the next command finds job.json, takes the lock and watches on. Were the note lost, a second job would wait for the first, find the
stage done, and end.
"""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

from lit_long.config import UserError
from lit_long.files import write_atomically
from lit_long.launch.local import LocalProcess, Node, count_nodes, count_processes, make_command, make_environment
from lit_long.stages.folder import JOB_LOCK, is_done, read_stage, take_lock

JOB = "job.json"
NODE_LOG = "log-node{}.txt"  # of all nodes but the first
ALREADY_DONE = 0
SECONDS_TO_SEE = 60.0  # until a file that another machine wrote shows on a network disk


def note_job(folder: Path, launcher: str, **about: str) -> None:
    """Write ``job.json``."""
    write_atomically(folder / JOB, json.dumps({"launcher": launcher, **about}) + "\n")


def read_job(folder: Path) -> dict[str, str] | None:
    """What ``note_job`` wrote; None without a note."""
    try:
        return json.loads((folder / JOB).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def forget_job(folder: Path) -> None:
    (folder / JOB).unlink(missing_ok=True)


class StageNode:
    """One node's part of a stage: the first one's holds ``job.lock``. The machine is the one that this is made on.

    Args:
        threads: CPU threads of each process.
        patience: seconds to wait for the folder to show; it may have been made a moment ago on another machine.

    Raises:
        UserError: this machine does not see the stage's folder.
    """

    def __init__(self, folder: Path, node: Node, threads: int, patience: float = SECONDS_TO_SEE) -> None:
        wait_to_see(folder, patience)
        self.folder, self.lock, self.process = folder, None, None
        if node.rank == 0:
            while (lock := take_lock(folder, name=JOB_LOCK)) is None:
                time.sleep(1.0)
            self.lock = lock
            (folder / "error.txt").unlink(missing_ok=True)  # of the time before the job was queued again
        if is_done(folder):
            return
        config, _, _ = read_stage(folder)
        if (count := count_nodes(config)) != node.count:
            raise UserError(
                f"{folder}: trainer.nodes={count}, and the job has {node.count}; was the stage changed while it waited?"
            )
        # A cluster's signals reach all processes; USR1 and USR2 are for whoever watches over them, and would end these.
        deaf = ["/bin/sh", "-c", 'trap "" USR1 USR2; exec "$@"', "sh"]
        self.several = count_processes(config) > 1
        log = NODE_LOG.format(node.rank) if node.rank else "log.txt"
        words = [*deaf, *make_command(folder, config, node)]
        self.process = LocalProcess.run(words, folder, make_environment(config, threads), self.lock and self.lock.fileno(), log)

    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self.process.exit_code() if self.process else ALREADY_DONE

    def interrupt(self, seconds: float) -> None:
        """End it at the next update, within ``seconds``."""
        if self.process:
            self.process.interrupt(seconds, self.several)

    def close(self) -> None:
        """Let the stage go."""
        if self.lock:
            self.lock.close()


def wait_to_see(folder: Path, patience: float) -> None:
    """Return as soon as this machine sees the stage. Raises UserError when it does not."""
    deadline = time.monotonic() + patience
    while not (folder / "stage.yaml").is_file():
        if time.monotonic() >= deadline:
            raise UserError(
                f"{socket.gethostname()} does not see {folder}, which the sweep made on its own machine. Put the sweep on storage that all "
                "nodes share: root=FOLDER"
            )
        time.sleep(0.5)


def confirm_exit(folder: Path, code: int, ended: float) -> int | None:
    """The exit code of a job that ended at ``ended`` (monotonic); None until the DONE that it must have written shows here, too."""
    waits = code == 0 and not is_done(folder) and time.monotonic() - ended < SECONDS_TO_SEE
    return None if waits else code
