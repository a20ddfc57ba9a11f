"""Stages as forks of one process that has imported what they need.

Most of a short stage's time is its imports: torch, and Lightning for training. `ForkServer` starts one process that imports them once, when the first
stage of a kind asks for it, and then forks: each later stage is spared these two seconds. A forked stage is what `python -m lit_long.stage FOLDER`
is, with a session, a log, a lock and a standard input of its own. For stages of one process on the CPU, on Linux; GPUs' drivers cannot be forked.
"""

from __future__ import annotations

import errno
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import BinaryIO, NoReturn

from lit_long.stages.folder import is_done
from lit_long.surroundings import forget_ranks, hide_from_torchmetrics

MODULES = {"train": "lit_long.training.run", "evaluate": "lit_long.evaluation.run"}  # what a stage of the kind imports
MESSAGE_BYTES = 65536
POLL_SECONDS = 0.02


class ForkServer:
    """The sweep's side: starts the server and asks it for stages. Both end of a pair of sockets; when the sweep dies the server ends, too."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lit_long.launch.fork_server", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what it imports is told in the log of the stage that asked first
                env=environment,
                start_new_session=True,
                pass_fds=[theirs.fileno()],
            )
        self.started = 0
        self.pids: dict[int, int] = {}  # by the number of a stage
        self.codes: dict[int, int] = {}
        self.gone = False

    def start(self, folder: Path, kind: str, lock: int, log: int) -> ForkedStage:
        """Ask for the stage in ``folder``. ``lock``, ``log``: open files that it inherits."""
        number, self.started = self.started, self.started + 1
        stdin, ours = os.pipe()
        try:
            request = json.dumps({"number": number, "folder": str(folder), "kind": kind}).encode()
            with suppress(OSError):  # it is gone, and the stage's exit code says so
                socket.send_fds(self.socket, [request], [stdin, log, lock])
        finally:
            os.close(stdin)
        return ForkedStage(self, number, folder, open(ours, "wb"))

    def listen(self, wait: bool = False) -> None:
        """Take what the server says: the process of a stage, or its exit code. ``wait``: until it says something."""
        while not self.gone:
            try:
                said = self.socket.recv(MESSAGE_BYTES, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                said = b""
            if not said:
                self.gone = True
                return
            wait, message = False, json.loads(said)
            if "code" in message:
                self.codes[message["number"]] = message["code"]
            else:
                self.pids[message["number"]] = message["pid"]

    def usable(self, environment: dict[str, str]) -> bool:
        """Whether a stage with these variables can come from it."""
        self.listen()
        return not self.gone and environment == self.environment

    def close(self) -> None:
        self.socket.close()
        self.process.wait()


class ForkedStage:
    """A stage's process, with the methods of `subprocess.Popen` that `LocalProcess` uses."""

    def __init__(self, server: ForkServer, number: int, folder: Path, stdin: BinaryIO) -> None:
        self.server, self.number, self.folder, self.stdin = server, number, folder, stdin

    @property
    def pid(self) -> int:
        """Waits until it is forked, which is after the first imports."""
        while self.number not in self.server.pids and not self.server.gone:
            self.server.listen(wait=True)
        if self.number not in self.server.pids:
            raise ProcessLookupError(errno.ESRCH, "the fork server ended before it forked the stage")
        return self.server.pids[self.number]

    def poll(self) -> int | None:
        """None while it runs; negative for a signal. If the server was killed its stages go on, and nobody knows their codes: 0 if it is done, else 1."""
        self.server.listen()
        if (code := self.server.codes.get(self.number)) is not None or not self.server.gone or self.lives():
            return code
        return 0 if is_done(self.folder) else 1

    def lives(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def wait(self, seconds: float = float("inf")) -> int:
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"stage {self.number}", seconds)
            time.sleep(POLL_SECONDS)
        return code

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def serve(connection: socket.socket) -> None:
    """The server: forks what it is asked for and tells exit codes, until the other side is closed. Returns in the server alone."""
    signal.signal(signal.SIGCHLD, lambda *_: None)  # only so that the pipe below wakes us
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    numbers: dict[int, int] = {}  # of the stages that run, by process
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if woken in ready:
                os.read(woken, MESSAGE_BYTES)
                report_ended(connection, numbers)
            if connection in ready:
                message, files, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 3)
                if not message:
                    return
                request = json.loads(message)
                load(request["kind"], files[1])
                if (pid := os.fork()) == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    selector.close()
                    for other in (connection.detach(), woken, wake):
                        os.close(other)
                    become(request["folder"], files)
                numbers[pid] = request["number"]
                connection.send(json.dumps({"number": request["number"], "pid": pid}).encode())
                for file in files:
                    os.close(file)


def report_ended(connection: socket.socket, numbers: dict[int, int]) -> None:
    """Tell the exit codes of the stages that have ended."""
    while numbers:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        if pid in numbers:  # and no process that an import left behind
            code = os.waitstatus_to_exitcode(status)
            connection.send(json.dumps({"number": numbers.pop(pid), "code": code}).encode())


def load(kind: str, log: int) -> None:
    """Import what stages of the kind need. What is printed meanwhile goes to ``log``, and so does what fails: the stage meets it again."""
    if MODULES[kind] in sys.modules:
        return
    for stream in (1, 2):
        os.dup2(log, stream)
    with suppress(Exception):
        import_module("lit_long.stages.run")
        import_module(MODULES[kind])


def become(folder: str, files: list[int]) -> NoReturn:
    """Go on as `python -m lit_long.stage FOLDER watch_parent=true`, whose standard input and log are the first two files; the third is its lock."""
    os.setsid()
    stdin, log, _ = files
    for file, stream in ((stdin, 0), (log, 1), (log, 2)):
        os.dup2(file, stream)
    os.close(stdin)
    os.close(log)
    with suppress(OSError):
        Path("/proc/self/comm").write_text(Path(folder).name[:15])  # the name that top and `ps -e` show
    invalidate_caches()  # files may have come since
    sys.argv = ["lit_long.stage", folder, "watch_parent=true"]
    runpy.run_module("lit_long.stage", run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    forget_ranks()
    hide_from_torchmetrics()
    with socket.socket(fileno=int(sys.argv[1])) as ours:
        serve(ours)
