"""MLflow's pages on a real sweep, in a real browser: the page that the sweep prints, the parent with its report, the variants' loss curves.

python -m tests.integration.test_mlflow_views [ROOT]    makes the pictures of the docs from the latest `make sweep` below ROOT (this checkout)
"""

from __future__ import annotations

import io
import os
import re
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
WIDTH, HEIGHT = 1280, 620  # of a laptop's window
HEADS = """[...document.querySelectorAll('.ag-header-cell')].map(cell => [cell.innerText.trim(), cell.getBoundingClientRect().right])
    .filter(head => head[0].startsWith('eval/'))"""


@contextmanager
def served(root: Path) -> Iterator[str]:
    """Address of mlflow/serve.sh over the record below ``root``."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "ROOT": str(root)}
    with answering(REPOSITORY / "mlflow" / "serve.sh", environment, root / "serve.log") as address:
        yield address


class Pages:
    """The views of one sweep, in a browser that was never used before."""

    def __init__(self, browser: Browser, uri: str, root: Path) -> None:
        self.browser, self.uri = browser, uri
        self.key = (root / "runs" / "position_tiny" / "latest").resolve().name
        (self.parent,) = runs(record(root), f"tags.`lit_long.sweep` = '{self.key}'")
        self.experiment = self.parent.info.experiment_id

    def first(self, address: str = "") -> str:
        """The page of the sweep: at the server's address, or at the one that the sweep printed."""
        self.browser.size(WIDTH, HEIGHT)
        self.browser.open("about:blank")
        self.browser.open(address or self.uri)
        self.browser.wait_for("matching runs", "perplexity")
        self.browser.wait_until_still()
        return self.browser.text()

    def show(self, page: str, *words: str, seconds: float = 600) -> str:
        """The page's text when ``words`` are in it and nothing moves any more."""
        if "report.html" not in page:
            self.browser.size(WIDTH, HEIGHT)
        self.browser.open("about:blank")
        self.browser.open(f"{self.uri}/#/experiments/{self.experiment}/runs{page}")
        self.browser.wait_for(*words, seconds=seconds)
        self.browser.wait_until_still()
        return self.browser.text()

    def report(self) -> str:
        """The parent with its report; the text is the report's, which is in a frame."""
        self.browser.size(WIDTH, 900)
        self.show(f"/{self.parent.info.run_id}/artifacts/report.html", "report.html", "Path:")
        return self.browser.frame_text()

    def table(self) -> str:
        """The parent with its table."""
        return self.show(f"/{self.parent.info.run_id}/artifacts/table.csv", "table.csv", "variant", "perplexity")

    def curves(self) -> str:
        """The losses of the runs that extended the base, in one chart over the whole window: a line a variant."""
        found = quote(f"tags.`lit_long.member_of` = '{self.key}' AND tags.`lit_long.stage` = 'extend'")
        order = f"orderByKey={quote('attributes.`run_name`')}&orderByAsc=true"
        page = f"?workflowType=machine_learning&searchFilter={found}&{order}&compareRunsMode=CHART"
        self.show(page, "matching runs", "val/code", "train")
        self.browser.type("input[placeholder='Search metric charts']", "train/loss")
        self.browser.wait_until_still()
        self.browser.run("document.querySelector('[data-component-id=fullscreen_button_chartcard]').click()")
        self.browser.wait_until_still()
        return self.browser.text()


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep of two variants, and the last line that it printed."""
    root = tmp_path_factory.mktemp("views")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    words = command("lit_long.sweep", *MINI, "grid.position=[rope,abf]", "launcher.parallel=2", f"root={root}")
    finished = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=1200)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return root, finished.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def root(swept):
    return swept[0]


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


def test_the_first_page_is_the_sweep(root, swept):
    found = re.fullmatch(r"runs     http://127.0.0.1:5000/(#/experiments/\S+)  \(while `make ui ROOT=(\S+)` runs\)", swept[1])
    assert found and found[2] == str(root), swept[1]
    with served(root) as uri:
        for address in (uri, f"{uri}/{found[1]}"):  # of the server; that the sweep printed
            with Browser(WIDTH, HEIGHT) as browser:
                text = Pages(browser, uri, root).first(address)
                heads = browser.run(HEADS)
                (folder := root / "pictures").mkdir(exist_ok=True)
                (folder / f"{len(list(folder.iterdir()))}.png").write_bytes(browser.picture())
            assert "8 matching runs" in text and "GenAI" in text  # MLflow's switch, which stands at "Model training"
            shown = ("eval/perplexity/code/256", "eval/perplexity/code/128", "eval/retrieval_rouge_l/docs/256")
            assert [name for name, right in sorted(heads, key=lambda head: head[1]) if right <= WIDTH] == list(shown)
            rows = {(row["variant"], row["metric"], row["domain"], row["length"]): row["mean"] for row in table(root)}
            for variant in ("rope", "abf", "base"):
                for name in shown:
                    assert rows[variant, *name.split("/")[1:]][:6] in text, (variant, name)  # the page shows more digits
            listed = [line.strip() for line in text.splitlines()]
            names = ["position_tiny | 2 variants, 1 seed", "corpus", "base 128 | seed 0", "evaluate_base 256 | seed 0"]
            names += [f"{variant} | {stage} 256 | seed 0" for variant in ("abf", "rope") for stage in ("extend", "evaluate")]
            assert set(names) <= set(listed)  # the parent and all that belongs to it
            best = sorted(("rope", "abf"), key=lambda variant: float(rows[variant, "perplexity", "code", "256"]))
            order = [name for name in listed if name in names and "evaluate" in name]
            assert [name.split(" | ")[0] for name in order[:2]] == best  # sorted: the best first
            assert "How can I help" not in text  # the assistant is closed


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


def pictures(root: Path) -> None:
    """The pictures of the docs, in 128 colours, from the latest sweep of position_tiny below ``root``; it is run where there is none."""
    from PIL import Image

    if not (root / "runs" / "position_tiny" / "latest").exists():
        subprocess.run(command("lit_long.sweep", f"root={root}"), cwd=REPOSITORY, check=True)
    with served(root) as uri, Browser(WIDTH, HEIGHT) as browser:
        made = Pages(browser, uri, root)
        for name, view in (("parent", made.report), ("children", made.first), ("compare", made.curves)):
            view()
            picture = Image.open(io.BytesIO(browser.picture())).convert("RGB").quantize(128, dither=Image.Dither.NONE)
            picture.save(REPOSITORY / "docs" / "images" / f"mlflow_{name}.png", optimize=True)


if __name__ == "__main__":
    pictures(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else REPOSITORY)
