"""A real SLURM on this machine, of one node or two, for tests: munged, slurmctld and slurmd in a folder of their own, without systemd or cgroups.

    with cluster(folder) as environment: subprocess.run(["sinfo"], env=environment)

As a script it starts one and waits: python -m tests.launch.slurm_cluster FOLDER. Needs root and Debian's packages slurmctld, slurmd,
slurm-client and munge, which ``install`` fetches.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PACKAGES = ["slurmctld", "slurmd", "slurm-client", "munge"]
CPUS = 8  # that the node says it has; it runs what is asked of it however many there are


def install() -> str:
    """Fetch what is missing. Returns why that cannot be done, "" when all is there."""
    if os.geteuid() != 0:
        return "needs root"
    if all(shutil.which(program) for program in ("slurmctld", "slurmd", "sbatch", "munged")):
        return ""
    if shutil.which("apt-get") is None:
        return "no apt-get to fetch SLURM with"
    options = {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(["apt-get", *words], env=os.environ | options, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"apt-get cannot install SLURM: {done.stderr[-300:]}"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def configuration(folder: Path, nodes: int) -> str:
    """slurm.conf. A requeued job starts again after two minutes, when its old credentials have expired."""
    host = socket.gethostname()
    names = [f"node{number}" for number in range(nodes)] if nodes > 1 else [host]
    lines = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs={CPUS} RealMemory=4000 State=UNKNOWN"
        for name in names
    ]
    return f"""
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobRequeue=1
KillWait=10
ReturnToService=2
{chr(10).join(lines)}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def cluster(folder: Path, nodes: int = 1) -> Iterator[dict[str, str]]:
    """Start it, yield the environment in which its commands work, end it."""
    (folder / "state").mkdir(parents=True)
    (folder / "slurm.conf").write_text(configuration(folder, nodes))
    (folder / "munge.key").write_bytes(os.urandom(1024))
    for path, mode in ((folder, 0o755), (folder / "munge.key", 0o600)):
        path.chmod(mode)
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
    names = {f"{name}={folder}/munge.{name.split('-')[0]}" for name in ("key-file", "pid-file", "log-file", "seed-file")}
    daemons = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *(f"--{one}" for one in sorted(names))],
        ["slurmctld", "-D", "-c"],
        *(["slurmd", "-D", *(["-N", f"node{number}"] if nodes > 1 else [])] for number in range(nodes)),
    ]
    with ExitStack() as stack:
        for words in daemons:
            log = stack.enter_context((folder / f"{words[0]}-output.log").open("ab"))
            daemon = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            stack.callback(end, daemon)
            time.sleep(1.0)
        ready(environment, nodes)
        yield environment
        subprocess.run(["scancel", "--user=root", "--signal=KILL"], env=environment, check=False)


def ready(environment: dict[str, str], nodes: int, seconds: float = 60.0) -> None:
    """Wait until all nodes are idle."""
    deadline = time.monotonic() + seconds
    while True:
        seen = subprocess.run(["sinfo", "--noheader", "--Node", "--format=%T"], env=environment, capture_output=True, text=True)
        if seen.stdout.split() == ["idle"] * nodes:
            return
        assert time.monotonic() < deadline, f"SLURM does not start: {seen.stdout}{seen.stderr}"
        time.sleep(0.5)


def end(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(15)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


if __name__ == "__main__":
    if problem := install():
        sys.exit(problem)
    for number in (signal.SIGINT, signal.SIGTERM):  # also in the background, where a shell has Ctrl-C ignored
        signal.signal(number, signal.default_int_handler)
    with cluster(Path(sys.argv[1]).resolve(), int((sys.argv[2:] or ["1"])[0])) as found:
        print(f"export SLURM_CONF={found['SLURM_CONF']}   # Ctrl-C ends it", flush=True)
        with suppress(KeyboardInterrupt):
            time.sleep(1e9)
