"""The default experiment in miniature, and running commands as a user does."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from unittest.mock import patch

from lit_long.launch import local
from lit_long.launch.fork_server import ForkServer
from lit_long.stages.data import data_stage, prepare_stage
from lit_long.stages.folder import locked

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

REPOSITORY = Path(__file__).resolve().parents[2]

SMALL = {"packages": ["omegaconf"], "validation": ["argparse", "asyncio", "email", "json", "typing"], "vocab_size": 1024}
CORPUS = [f"data.corpus.{key}={str(value).replace(chr(39), '')}" for key, value in SMALL.items()]
MINI = [
    *CORPUS,
    *("model.d_model=48", "model.n_layers=2", "model.n_heads=2", "model.n_kv_heads=1", "model.head_dim=24", "model.d_ffn=96"),
    *("model.context=128", "stages.base.context=128", "stages.base.tokens=12k", "stages.base.tokens_per_update=1k"),
    *("stages.base.curriculum.phases=[]", "stages.base.optim.name=adamw"),
    *("stages.extend.context=256", "stages.extend.tokens=2k", "stages.extend.tokens_per_update=512"),
    *("evaluation.lengths=[128,256]", "evaluation.retrieval_lengths=[128,256]"),
    *("evaluation.sequences=4", "evaluation.retrieval_examples=4", "validation.times=2", "validation.sequences=2"),
    *("trainer.checkpoint_every=3", "trainer.micro_batch_tokens=512", "trainer.precision=32-true"),
    "trainer.threads=1",  # tests run side by side
]
TASKS = ("evaluation.tasks=[passkey]", "evaluation.task_lengths=[256]", "evaluation.task_samples=2")


MAKE_DATABASE = """
import sys
from pathlib import Path
from lit_long.config import TrackingConfig
from lit_long.tracking.mlflow import MlflowTracker
MlflowTracker.open(TrackingConfig(), "unused", Path(sys.argv[1]))
"""


def command(module: str, *words: str) -> list[str]:
    return [sys.executable, "-m", module, *words]


def run(module: str, *words: str, cwd: Path = REPOSITORY, timeout: float = 840, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the suite to its end. ``more``: variables of its environment."""
    environment = os.environ | {"COLUMNS": "120", "PYTHONPATH": str(REPOSITORY)} | more
    return subprocess.run(command(module, *words), capture_output=True, text=True, cwd=cwd, env=environment, timeout=timeout)


class SharedServer(ForkServer):
    """Forks the stages of all sweeps that `run_here` runs with the same variables: its imports are half of what a small sweep takes. It ends with this
    process."""

    running: ClassVar[dict[str, SharedServer]] = {}

    @classmethod
    def of(cls, environment: dict[str, str]) -> SharedServer:
        key = json.dumps(sorted(environment.items()))
        if key not in cls.running or not cls.running[key].usable(environment):
            with chdir(REPOSITORY):
                cls.running[key] = cls(environment)
        return cls.running[key]

    def close(self) -> None:
        pass


def run_here(module: str, *words: str, cwd: Path = REPOSITORY, **more: str) -> subprocess.CompletedProcess[str]:
    """As `run`, within this process, which has imported already what a command needs. For commands of which a test asks what they do, not how they start.
    Modules of the user's own are found where ``PYTHONPATH`` says, not in ``cwd``."""
    found = import_module(module)
    main = found.main if hasattr(found, "main") else import_module(f"{module}.__main__").main
    out, errors = StringIO(), StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    variables = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}  # of each test another
    with (
        patch.dict(os.environ, variables | {"COLUMNS": "120", "PYTHONPATH": str(REPOSITORY)} | more, clear=True),
        patch.object(local, "ForkServer", SharedServer.of),
        chdir(cwd),
        redirect_stdout(out),
        redirect_stderr(errors),
    ):
        try:
            code = main(list(words))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return subprocess.CompletedProcess([module, *words], code, out.getvalue(), errors.getvalue())


def prepared_corpus() -> Path:
    """The folder of the data stage of `CORPUS`, and beside it what was reported. It is prepared once for all tests of a run, by the process that
    asks first, and not to be changed."""
    root = Path(os.environ["LIT_LONG_CACHE"]) / "corpus"
    root.mkdir(exist_ok=True)
    stage, reports = data_stage({"data": {"corpus": SMALL}}, str(root)), []
    with locked(root, lambda: None):
        if not stage.done:
            prepare_stage(stage, 0, False, lambda message, done: reports.append((message, done)))
            (root / "reports.json").write_text(json.dumps(reports))
    return stage.folder


def with_corpus(root: Path) -> Path:
    """``root`` with a copy of the prepared data of `CORPUS`."""
    corpus = prepared_corpus()
    shutil.copytree(corpus, root / "runs" / "stages" / corpus.name)
    return root


def reference() -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Root of a sweep of rope and abf, which also asks its models for passkeys, and how it ended. It is run once for all tests of a run, by the
    process that asks first; its stages are not to be changed."""
    root = Path(os.environ["LIT_LONG_CACHE"]) / "reference"
    root.mkdir(exist_ok=True)
    with locked(root, lambda: None):
        if not (file := root / "ended.json").exists():
            # Logs tell what processes import.
            with_corpus(root)
            ended = run("lit_long.sweep", *MINI, *TASKS, "grid.position=[rope,abf]", f"root={root}", PYTHONPROFILEIMPORTTIME="1")
            found = {name: str(folder) for name, folder in stages(root).items()} if ended.returncode == 0 else {}
            file.write_text(json.dumps([found, ended.returncode, ended.stdout, ended.stderr]))
    _, code, said, errors = json.loads(file.read_text())
    return root, subprocess.CompletedProcess(["lit_long.sweep"], code, said, errors)


def reference_stages() -> dict[str, Path]:
    """Folders of its stages by ``name variant``."""
    root, ended = reference()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return {name: Path(folder) for name, folder in json.loads((root / "ended.json").read_text())[0].items()}


def with_stages(root: Path, *names: str) -> Path:
    """``root`` with copies of stages of `reference`, which its sweeps then need not run; they have no record there."""
    found = reference_stages()
    for name in names:
        shutil.copytree(found[name], root / "runs" / "stages" / found[name].name)
    return root


def with_database(root: Path) -> Path:
    """``root`` with an empty record of MLflow's: making its tables takes seconds, copying the file does not."""
    template = Path(os.environ["LIT_LONG_CACHE"]) / "empty"
    template.mkdir(exist_ok=True)
    with locked(template, lambda: None):
        if not (file := template / "mlflow" / "mlflow.db").exists():
            made = [sys.executable, "-c", MAKE_DATABASE, str(template)]
            subprocess.run(made, check=True, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)})
    (root / "mlflow").mkdir(parents=True)
    shutil.copy(file, root / "mlflow" / "mlflow.db")
    return root


@contextmanager
def answering(program: Path, environment: dict[str, str], log: Path) -> Iterator[str]:
    """Address of the server that ``program`` starts on the free port it is given; ended with all its processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(program)], env=environment | {"PORT": str(port)}, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 600
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(600)


BROKEN = """
from dataclasses import dataclass
from pathlib import Path
from lit_long.positions.schemes import RoPE

@dataclass(frozen=True)
class Broken(RoPE):
    def rotation(self, positions, length):
        if not Path(__file__).with_name("repaired").exists():
            raise RuntimeError(f"the encoder broke at length {length}")
        return super().rotation(positions, length)
"""


def with_broken_encoder(work: Path) -> Path:
    """``work``, from which sweeps find position=broken: a user's own encoder, which breaks until there is a file ``repaired`` beside it."""
    (work / "configs" / "position").mkdir(parents=True)
    (work / "broken.py").write_text(BROKEN)
    (work / "configs" / "position" / "broken.yaml").write_text("scheme: broken:Broken\nbase: 625\n")
    return work


def stages(root: Path) -> dict[str, Path]:
    """Folders of the latest sweep's stages by ``name variant``."""
    folder = (root / "runs" / "position_tiny" / "latest").resolve()
    trials = json.loads((folder / "sweep.json").read_text())["trials"]
    return {f"{name} {t['variant']}": (folder / path).resolve() for t in trials for name, path in t["stages"].items()}


def losses(folder: Path) -> list[float]:
    """Training losses of a stage, in order of the updates."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "train/loss" in row]
    assert steps == list(range(1, len(steps) + 1)), f"updates missing or repeated: {steps}"
    return [row["train/loss"] for row in rows if "train/loss" in row]


def table(root: Path) -> list[dict[str, str]]:
    with (root / "runs" / "position_tiny" / "latest" / "table.csv").open() as file:
        return list(csv.DictReader(file))


def runs(client: MlflowClient, filter_string: str = "") -> list[Run]:
    """The runs of the miniature's MLflow experiment."""
    experiment = client.get_experiment_by_name("position_tiny")
    return client.search_runs([experiment.experiment_id], filter_string)


def record(root: Path) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow/mlflow.db")
