"""The pages say what is so: commands print what stands there, are accepted as they stand, and links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import sysconfig
from collections import defaultdict
from pathlib import Path
from string import Template

import pytest

from lit_long.config import UserError, read_command
from lit_long.stages.plan import make_plan
from lit_long.stages.sweep_folder import outline
from tests.docs import families
from tests.docs.blocks import BLOCK, REPOSITORY, blocks_of, clone, pages, printed, same_everywhere, write

BLOCKS = [block for page in pages() for block in blocks_of(page)]
PLACEHOLDER = re.compile(r"…|(?<!\$)\b[A-Z]{2,}\b|node-|\ba,b\b")  # FOLDER, HOST, train-…: the reader fills them in
FILES = (  # that a page tells to write
    re.compile(r"`([\w/]+\.(?:py|yaml))`[^`]*:\n\n```\w+\n(.*?)```", re.S),  # Save as `experiments/mine.yaml`: …
    re.compile(r"```\w+\n# ([\w/]+\.(?:py|yaml))\b[^\n]*\n(.*?)```", re.S),  # a block whose first line is its file's name
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return clone(tmp_path_factory.mktemp("clone"))


@pytest.mark.parametrize("block", [b for b in BLOCKS if not b.slow], ids=lambda b: b.name)
def test_a_command_prints_what_the_page_shows(block, place):
    assert printed(block.command, place) == block.text, "run `make docs` and look at what changed"


def test_slow_output_says_when():
    for block in BLOCKS:
        if block.slow and block.text:  # "" until someone has run it
            assert block.text.startswith(f"$ {block.command}\n"), block.name
            assert re.fullmatch(r"\*Printed on \d{4}-\d\d-\d\d at commit [0-9a-f]{7,}( with changes)?\.\*", block.when), (
                block.name
            )


def test_output_is_written_and_found_again(place, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("Before.\n\n<!-- output: echo $((1+1)) -->\n\nBetween.\n\n<!-- slow output: echo late -->\nAfter.\n")
    assert list(write(page, place, False, "")) == ["echo $((1+1))"]
    assert (
        "<!-- output: echo $((1+1)) -->\n```console\n$ echo $((1+1))\n2\n```\n\nBetween." in page.read_text()
        and "late\n" not in page.read_text()
    )
    assert list(write(page, place, False, "")) == [] and list(write(page, place, True, "Printed today.")) == ["echo late"]
    once = page.read_text()
    assert once.endswith("```console\n$ echo late\nlate\n```\n\n*Printed today.*\nAfter.\n")
    list(write(page, place, True, "Printed today."))
    assert page.read_text() == once and len(BLOCK.findall(once)) == 2


def test_machines_do_not_differ(tmp_path):
    text = f"tiny f526f1f0: 4 trials\n  to run  {tmp_path}/runs/stages/train-e383988a3ba4   \nroot: {tmp_path}\n"
    assert same_everywhere(text, tmp_path) == "tiny …: 4 trials\n  to run  runs/stages/train-…\nroot: ."


def commands(page: Path) -> list[str]:
    """The commands of a page's shell blocks, each on one line, without comments."""
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines]


def test_verbs_exist():
    for page in pages():
        for module in re.findall(r"python -m (lit_long\.[a-z_]+|tests\.[a-z_]+(?:\.[a-z_]+)?)", page.read_text(encoding="utf-8")):
            place = REPOSITORY / Path(*module.split("."))
            assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), f"{page}: {module}"


def sweeps(page: Path) -> list[list[str]]:
    """The words of every sweep that a page tells to run, but those with a placeholder."""
    mine = {"MINE": f"{sysconfig.get_path('stdlib')}/[a-c]*.py"}  # of guides/own-data.md
    parts = [part for line in commands(page) for part in re.split(r"&&|\|", line) if not PLACEHOLDER.search(part)]
    found = [shlex.split(Template(part).safe_substitute(mine)) for part in parts]
    return [words[3:] for words in found if words[:3] == ["python", "-m", "lit_long.sweep"]]


TOLD = {page: sweeps(page) for page in pages()}


@pytest.mark.parametrize("page", [page for page in TOLD if TOLD[page]], ids=lambda page: page.stem)
def test_sweeps_are_accepted(page, tmp_path, monkeypatch):
    """Each is planned, in a folder with the files that the page shows; only data and weights may be missing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, content in (found for file in FILES for found in file.findall(page.read_text(encoding="utf-8"))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    for words in TOLD[page]:
        command = read_command([*words, "dry_run=true", f"root={tmp_path}"])
        grid, chosen = command.experiment.get("grid", {}), {word.partition("=")[0] for word in words}
        # One trial says as much, sooner; what the page itself chooses from must be there.
        command.experiment["grid"] = {axis: values if f"grid.{axis}" in chosen else values[:1] for axis, values in grid.items()}
        command.experiment.pop("exclude", None)  # which may be of the others
        try:
            assert outline(make_plan(command))
        except UserError as error:
            pytest.fail(f"{page.relative_to(REPOSITORY)}: {shlex.join(words)}: {error}", pytrace=False)


def test_sweeps_are_found():
    """The test above is no empty one."""
    assert sum(map(len, TOLD.values())) > 40 and len([page for page in TOLD if TOLD[page]]) > 10


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    for page in pages():
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if not link.startswith("http"):
                file, _, anchor = link.partition("#")
                target = (page.parent / file).resolve() if file else page
                assert target.exists(), f"{page}: {link}"
                assert not anchor or anchor in anchors(target), f"{page}: {link}"


def test_the_index_names_every_page():
    text = (REPOSITORY / "docs" / "README.md").read_text(encoding="utf-8")
    for page in pages()[1:]:
        name = str(page.relative_to(REPOSITORY / "docs"))
        assert name == "README.md" or f"]({name})" in text, f"docs/README.md does not name {name}"


def test_bad_words_are_told():
    finished = subprocess.run([sys.executable, "-m", "tests.docs", "slw=true"], cwd=REPOSITORY, capture_output=True, text=True)
    assert finished.returncode == 2 and "slow=true" in finished.stdout


# What the pages name though it is not here: other people's, and files that the reader would write.
ELSEWHERE = {"code_eval", "tmux", "MixedPrecisionPolicy", "tracking/wandb.py", "ends.py", "bend.py"}


def test_what_the_pages_name_is_there():
    """Files, functions, classes and keys in backticks. The lab book, the findings and the scores speak of what was run, compare.md of other projects."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True)
    files = listed.stdout.split() or [path.relative_to(REPOSITORY).as_posix() for path in REPOSITORY.rglob("*.py")]
    code = [name for name in files if name.endswith((".py", ".yaml", ".toml", "Makefile")) and not name.startswith("docs/")]
    words = set().union(
        *(re.findall(r"\w+", (REPOSITORY / name).read_text("utf-8", "replace")) for name in code if (REPOSITORY / name).is_file())
    )
    missing = []
    for page in pages():
        if page.name.startswith(("lab-book", "findings", "scores", "compare")):
            continue
        for name in set(re.findall(r"`([\w./]+(?:\(\))?)`", page.read_text(encoding="utf-8"))) - ELSEWHERE:
            is_file = re.fullmatch(r"[\w/.]+\.py", name)
            last = name.removesuffix("()").rpartition(".")[2]
            known = (
                any(f"/{file}".endswith(f"/{name}") for file in files)
                if is_file
                else "/" in name or last in words or not last.isidentifier()
            )
            if not known:
                missing.append(f"{page.name}: {name}")
    assert not missing


def test_families_of_the_table_pass_in_all_columns():
    """As their tests do, or they would fail; `python -m tests.docs.families` writes it."""
    passed = defaultdict(lambda: ["passed"])
    assert families.in_page() == families.table(
        {(test, case): passed[case] for test in families.COLUMNS.values() for case in families.CASES}
    )
