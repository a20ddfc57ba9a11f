"""How recording grows: a sweep of 1,000 finished trials that reports again, its page in MLflow, and the record of a stage of 20,000 updates, in the
SQLite file of `make ui` and on a team's server with users over PostgreSQL (where that is installed; the page asks for Chromium).

The 1,000 trials are 4 encoders × 250 seeds in miniature, 2,501 stages. One seed is really run; the folders of the others are copies of it with numbers
of their own, so the report reads, and MLflow gets, what it would after 1,000 runs. Lines of the 20,000 updates are those of that run, too.

python -m tests.benchmarks.bench_recording FILE.json [trials=1000] [pictures=FOLDER]
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from lit_long.config import TrackingConfig, read_command
from lit_long.processor import describe_machine
from lit_long.stages.folder import finish, read_result, write_stage
from lit_long.stages.plan import Stage, make_plan
from lit_long.tracking import Mirror
from lit_long.tracking.mlflow import MlflowTracker
from tests.integration import team
from tests.integration.browser import PROGRAM, Browser
from tests.integration.mini import MINI, REPOSITORY, answering, run

ENCODERS = "grid.position=[rope,pi,abf,yarn]"
UPDATES = 20_000
SEARCH = "tags.`lit_long.variant` = 'abf' AND tags.`lit_long.stage` = 'evaluate' AND tags.`lit_long.seed` = '7'"
Row = dict[str, Any]


def timed(name: str, target: float | None, work: Callable[[], Row | None]) -> Row:
    start = time.perf_counter()
    found = work() or {}
    row = {"name": name, "seconds": round(time.perf_counter() - start, 1), "target": target} | found
    print("  ".join(f"{key} {value}" for key, value in row.items() if value is not None), flush=True)
    return row


def sweep(root: Path, seeds: int) -> None:
    finished = run("lit_long.sweep", *words(seeds), f"root={root}", timeout=3000)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def words(seeds: int) -> list[str]:
    return [*MINI, ENCODERS, f"grid.seed=[{','.join(map(str, range(seeds)))}]"]


def copy_stages(root: Path, seeds: int) -> int:
    """Finished folders for all seeds from those of seed 0; returns how many stages there are."""
    plan = make_plan(read_command([*words(seeds), f"root={root}"]))
    first = {key(stage): stage for stage in plan.stages if stage.config.seed == 0}
    rng = random.Random(0)
    for stage in plan.stages:
        if stage.done:
            continue
        stage.folder.mkdir(parents=True)
        model, factor = first[key(stage)].folder, rng.uniform(0.9, 1.1)
        write_stage(stage.folder, stage.key, stage.settings(), stage.store, stage.parent)
        if (curves := model / "metrics.jsonl").exists():
            (stage.folder / "metrics.jsonl").write_text(curves.read_text())
        result = read_result(model)
        for row in result.get("measurements", []):
            row["value"] *= factor
        finish(stage.folder, result)
    return len(plan.stages)


def key(stage: Stage) -> tuple[str, str]:
    return stage.name, json.dumps(stage.config.position, sort_keys=True, default=str) if stage.parent else ""


def long_stage(uri: str, root: Path, curves: Path) -> Row:
    """A stage of 20,000 updates that ended: its record, in one go."""
    lines = [json.loads(line) for line in curves.read_text().splitlines()]
    updates = [line for line in lines if "train/loss" in line]
    file = root / "long.jsonl"
    with file.open("w") as stream:
        for step in range(1, UPDATES + 1):
            stream.write(json.dumps(updates[step % len(updates)] | {"step": step}) + "\n")
    tracker = MlflowTracker.open(TrackingConfig(uri=uri), "long", root)
    stage = tracker.begin("c0ffee", "train", params={}, tags={}, parent=tracker.begin("1", "sweep", params={}, tags={}))
    with counted() as requests:
        start = time.perf_counter()
        points = Mirror(tracker, stage, file).sync(final=True)
        seconds = time.perf_counter() - start
    return {"points": points, "requests": sum(requests.values()), "seconds": round(seconds, 1)}


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """Requests over HTTP that go out of this process."""
    from requests.adapters import HTTPAdapter

    sent, send = Counter[str](), HTTPAdapter.send

    def counting(self: Any, request: Any, **more: Any) -> Any:
        sent[request.path_url.partition("?")[0]] += 1
        return send(self, request, **more)

    HTTPAdapter.send = counting
    try:
        yield sent
    finally:
        HTTPAdapter.send = send


def page_rows(root: Path, trials: int, pictures: Path | None) -> list[Row]:
    """The sweep's page in a browser: until it shows its columns, and until a search is answered."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "ROOT": str(root)}
    with answering(REPOSITORY / "mlflow" / "serve.sh", environment, root / "serve.log") as uri, Browser() as browser:

        def first() -> Row:
            browser.open(uri)
            return matching(browser.wait_for("eval/perplexity/code/256", "| evaluate 256 | seed", seconds=120))

        def search() -> Row:
            browser.run("(field => { field.focus(); field.select() })(document.querySelector('[data-testid=search-box]'))")
            browser.ask("Input.insertText", text=SEARCH)
            for kind in ("rawKeyDown", "char", "keyUp"):
                browser.ask("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13)
            return matching(browser.wait_for("1 matching run", "abf | evaluate 256 | seed 7", seconds=120))

        rows = []
        for name, work in (("page", first), ("search", search)):
            rows.append(timed(f"MLflow's {name} of a sweep of {trials:,} trials", None, work))
            if pictures:
                browser.wait_until_still()
                pictures.mkdir(exist_ok=True)
                (pictures / f"{name}.png").write_bytes(browser.picture())
        return rows


def matching(text: str) -> Row:
    return {"shown": next(line for line in text.splitlines() if "matching run" in line)}


def main(argv: list[str]) -> int:
    options = dict(word.split("=", 1) for word in argv[1:])
    trials, pictures = int(options.get("trials", 1000)), Path(options["pictures"]) if "pictures" in options else None
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sweep(root, 1)
        stages = copy_stages(root, trials // 4)
        print(f"{trials:,} trials, {stages:,} stages")
        curves = max(root.glob("runs/stages/train-*/metrics.jsonl"), key=lambda file: file.stat().st_size)
        for what, target in (("recorded and reported", None), ("reported again", 60.0)):
            rows.append(timed(f"{trials:,} finished trials, {what}", target, lambda: sweep(root, trials // 4)))
        if PROGRAM:
            rows += page_rows(root, trials, pictures)
        rows.append(timed(f"a stage of {UPDATES:,} updates, SQLite", 60.0, lambda: long_stage("", root, curves)))
        if team.is_installed():
            os.environ |= team.LOGIN
            (server := root / "server").mkdir()
            with team.postgres() as database, team.team_server(database, server) as uri:
                rows.append(
                    timed(f"a stage of {UPDATES:,} updates, server with users", 60.0, lambda: long_stage(uri, root, curves))
                )
    about = {"machine": describe_machine(torch.device("cpu")), "mlflow": importlib.metadata.version("mlflow")}
    Path(argv[0]).write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
