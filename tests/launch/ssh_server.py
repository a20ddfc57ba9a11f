"""A real sshd on this machine, for tests: one host, ``far``, that a configuration file of its own makes known to ssh."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOST = "far"


def install() -> str:
    """Fetch it if need be. Returns why that cannot be done, "" when it is there."""
    if shutil.which("sshd", path="/usr/sbin:" + os.environ["PATH"]) and shutil.which("ssh"):
        return ""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return "sshd is not installed, and cannot be without root and apt-get"
    options = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "openssh-server", "openssh-client"]):
        done = subprocess.run(["apt-get", *words], env=os.environ | options, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"apt-get cannot install openssh-server: {done.stderr[-300:]}"


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Start it; yields the command that reaches it, to which a host is added."""
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nPidFile none\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
    )
    (folder / "config").write_text(
        f"Host {HOST}\n  HostName 127.0.0.1\n  Port {port}\n  User {getpass.getuser()}\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n"
        f"  StrictHostKeyChecking no\n  UserKnownHostsFile {folder}/known\n  BatchMode yes\n  LogLevel ERROR\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd insists on it
    sshd = shutil.which("sshd", path="/usr/sbin:" + os.environ["PATH"])
    with (folder / "log").open("ab") as log:
        daemon = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], stdin=subprocess.DEVNULL, stderr=log)
    try:
        reach = f"ssh -F {folder}/config"
        deadline = time.monotonic() + 600
        while subprocess.run([*reach.split(), HOST, "true"], stdin=subprocess.DEVNULL).returncode:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.5)
        yield reach
    finally:
        daemon.terminate()
        daemon.wait(10)
