"""MLflow's pages on a real sweep, in a real browser: the parent with its table, the children under it, the variants' loss curves.

python -m tests.integration.test_mlflow_views ROOT FOLDER    makes the pictures of the docs from the sweep below ROOT
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.integration.browser import PROGRAM, Browser
from tests.integration.mini import MINI, REPOSITORY, answering, command, losses, record, runs, stages, table

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed (Debian: apt-get install chromium)"),
]
WIDTH, HEIGHT = 1280, 620
PERPLEXITY = "eval/perplexity/code/256"


@contextmanager
def served(root: Path) -> Iterator[str]:
    """Address of mlflow/serve.sh over the record below ``root``."""
    shutil.copy(REPOSITORY / "mlflow" / "serve.sh", root / "mlflow" / "serve.sh")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with answering(root / "mlflow" / "serve.sh", environment, root / "serve.log") as address:
        yield address


class Pages:
    """The three views of one sweep."""

    def __init__(self, browser: Browser, uri: str, root: Path) -> None:
        self.browser, self.uri = browser, uri
        found = runs(record(root), f"tags.`lit_long.sweep` = '{(root / 'runs' / 'position_tiny' / 'latest').resolve().name}'")
        (self.parent,) = found
        self.experiment = self.parent.info.experiment_id
        # As a reader leaves the page: with MLflow's assistant closed.
        browser.open(f"{uri}/")
        browser.wait_for("Experiments")
        self.remember("mlflow.assistant.panelOpen_v1", False)
        self.remember("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", True)

    def remember(self, key: str, value: object) -> None:
        self.browser.run(f"localStorage.setItem({json.dumps(key)}, {json.dumps(json.dumps(value))})")

    def show(self, page: str, *words: str, seconds: float = 120.0) -> str:
        """The page's text when ``words`` are in it and nothing moves any more."""
        if "report.html" not in page:
            self.browser.size(WIDTH, HEIGHT)
        self.browser.open("about:blank")
        self.browser.open(f"{self.uri}/#/experiments/{self.experiment}/runs{page}")
        self.browser.wait_for(*words, seconds=seconds)
        self.browser.settle()
        return self.browser.text()

    def report(self) -> str:
        """The parent with its report; the text is the report's, which is in a frame."""
        self.browser.size(WIDTH, 900)
        self.show(f"/{self.parent.info.run_id}/artifacts/report.html", "report.html", "Path:")
        return self.browser.frame_text()

    def table(self) -> str:
        """The parent with its table."""
        return self.show(f"/{self.parent.info.run_id}/artifacts/table.csv", "table.csv", "variant", "perplexity")

    def children(self) -> str:
        """The runs under the parent, by name, with the perplexity that the evaluations measured."""
        found = f"tags.`mlflow.parentRunId` = '{self.parent.info.run_id}'"
        self.listed(found, "", "corpus", "matching runs")
        # The choice of columns, where the page itself keeps it.
        key = f'MLflowLocalStorage-1.1-ExperimentPage-["{self.experiment}"]-ReactComponentState'
        state = json.loads(self.browser.run(f"localStorage.getItem({json.dumps(key)})"))
        self.remember(key, state | {"selectedColumns": [f"metrics.`{PERPLEXITY}`"]})
        return self.listed(found, "", "corpus", "matching runs", PERPLEXITY)

    def curves(self) -> str:
        """The losses of the runs that extended the base, in one chart over the whole window: a line a variant."""
        found = f"tags.`mlflow.parentRunId` = '{self.parent.info.run_id}' AND tags.`lit_long.stage` = 'extend'"
        self.listed(found, "&compareRunsMode=CHART", "matching runs", "val/code", "train")
        self.browser.type("input[placeholder='Search metric charts']", "train/loss")
        self.browser.settle()
        self.browser.run("document.querySelector('[data-component-id=fullscreen_button_chartcard]').click()")
        self.browser.settle()
        return self.browser.text()

    def listed(self, condition: str, more: str, *words: str) -> str:
        page = f"?searchFilter={quote(condition)}&orderByKey={quote('attributes.`run_name`')}&orderByAsc=true{more}"
        return self.show(page, *words)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A finished sweep of two variants."""
    root = tmp_path_factory.mktemp("views")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    words = command("lit_long.sweep", *MINI, "grid.position=[rope,abf]", "launcher.parallel=2", f"root={root}")
    finished = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=1200)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return root


@pytest.fixture(scope="module")
def pages(root):
    with served(root) as uri, Browser(WIDTH, HEIGHT) as browser:
        yield Pages(browser, uri, root)


def test_the_parent_shows_its_table(pages, root):
    text = pages.table()
    assert "position_tiny | 2 variants, 1 seed" in text
    for word in ("variant", "metric", "domain", "length", "mean", "rope", "code"):
        assert word in text.split(), word
    assert "report.html" in text and "figures" in text
    report = pages.report()
    assert "Validation perplexity (lower is better)" in report
    rows = [line.split("\t") for line in report.splitlines()]
    shown = {name: float(next(row for row in rows if row[0] == name)[1]) for name in ("RoPE", "RoPE ABF")}  # code at 256
    code = [row for row in table(root) if (row["metric"], row["domain"], row["length"]) == ("perplexity", "code", "256")]
    measured = {row["variant"]: float(row["mean"]) for row in code}
    assert shown == pytest.approx({"RoPE": measured["rope"], "RoPE ABF": measured["abf"]}, rel=1e-3)


def test_the_children_read_well_in_order(pages, root):
    text = pages.children()
    assert "7 matching runs" in text
    names = [line.strip() for line in text.splitlines()]
    stages = ["abf | evaluate 256 | seed 0", "abf | extend 256 | seed 0", "base 128 | seed 0", "corpus"]
    stages += ["evaluate_base 256 | seed 0", "rope | evaluate 256 | seed 0", "rope | extend 256 | seed 0"]
    assert [name for name in names if name in stages] == stages
    for row in table(root):
        if (row["metric"], row["domain"], row["length"]) == ("perplexity", "code", "256"):
            assert row["mean"][:6] in text, row  # the page shows as many digits as the column holds


def test_the_curves_of_variants_lie_in_one_chart(pages, root):
    text = pages.curves()
    assert "2 matching runs" in text
    for variant in ("rope", "abf"):  # in the legend
        assert f"{variant} | extend 256 | seed 0 (train/loss)" in text
    charts = pages.browser.run(
        "[...document.querySelectorAll('.js-plotly-plot')].map(one => one.data.map(line => [line.name, [...line.x], [...line.y]]))"
    )
    lines = {name: (steps, values) for name, steps, values in charts[-1] if steps}
    for variant in ("rope", "abf"):
        steps, values = lines[f"{variant} | extend 256 | seed 0"]
        assert steps == [1, 2, 3, 4] and values == pytest.approx(losses(stages(root)[f"extend {variant}"]))


def pictures(root: Path, folder: Path) -> None:
    """The pictures of the docs, in 128 colours."""
    from PIL import Image

    with served(root) as uri, Browser(WIDTH, HEIGHT) as browser:
        made = Pages(browser, uri, root)
        for name, view in (("parent", made.report), ("children", made.children), ("compare", made.curves)):
            view()
            picture = Image.open(io.BytesIO(browser.picture())).convert("RGB").quantize(128, dither=Image.Dither.NONE)
            picture.save(folder / f"mlflow_{name}.png", optimize=True)


if __name__ == "__main__":
    pictures(Path(sys.argv[1]).resolve(), Path(sys.argv[2]))
