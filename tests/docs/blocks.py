"""Command output in the pages: where it stands, what the command prints now, and how the page says it.

    <!-- output: python -m lit_long.sweep dry_run=true -->        a marker, then the block that is written below it
    <!-- slow output: make sweep -->                              written only when asked for, with date and commit below it

Commands run in a copy of the code, as in a fresh clone: nothing is cached there. What differs from machine to machine is made the same:
the clone's path is left out, and a stage's or sweep's identity is `…`, because the versions of the installed packages enter it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
COLUMNS = 110
BLOCK = re.compile(
    r"^<!-- (?P<slow>slow )?output: (?P<command>.+?) -->\n(?:```console\n(?P<text>.*?)\n```\n(?:\n(?P<when>\*Printed .*?\*)\n)?)?",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A command in a page and what stands below it; ``text`` is "" before the first writing."""

    page: Path
    command: str
    slow: bool
    text: str
    when: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}: {self.command}"


def pages() -> list[Path]:
    """All pages for readers."""
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def blocks_of(page: Path) -> list[Block]:
    return [block_of(page, found) for found in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def block_of(page: Path, found: re.Match[str]) -> Block:
    return Block(page, found["command"], bool(found["slow"]), found["text"] or "", found["when"] or "")


def clone(into: Path) -> Path:
    """What commands need, as a fresh clone has it, with the compiled files that are there: a copy starts as fast as the original."""
    for folder in ("lit_long", "configs", "experiments"):
        shutil.copytree(REPOSITORY / folder, into / folder)
    shutil.copy2(REPOSITORY / "pyproject.toml", into)
    return into


def printed(command: str, place: Path) -> str:
    """Command line and output, as the block has them."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(place), "COLUMNS": str(COLUMNS), "NO_COLOR": "1", "TERM": "dumb"}
    finished = subprocess.run(
        ["bash", "-c", command], cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return f"$ {command}\n{same_everywhere(finished.stdout, place)}"


def same_everywhere(text: str, place: Path) -> str:
    """``text`` without what differs from one machine or one clone to another."""
    text = text.replace(f"{place.resolve()}/", "").replace(str(place.resolve()), ".")
    text = re.sub(r"\b(data|train|evaluate)-[0-9a-f]{12}\b", r"\1-…", text)
    text = re.sub(r"^(\w+(?: \w+)?) [0-9a-f]{8}(?=: \d+ trials)", r"\1 …", text, flags=re.M)
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def write(page: Path, place: Path, slow: bool, when: str) -> Iterator[str]:
    """Write the page's blocks again. Yields the commands whose output changed.

    Args:
        place: the clone that commands run in.
        slow: also those that take long.
        when: what is written below these.
    """
    changed: list[str] = []

    def again(found: re.Match[str]) -> str:
        block = block_of(page, found)
        if block.slow and not slow:
            return found[0]
        text = printed(block.command, place)
        if text != block.text:
            changed.append(block.command)
        marker = found[0].splitlines()[0]
        return f"{marker}\n```console\n{text}\n```\n" + (f"\n*{when}*\n" if block.slow else "")

    before = page.read_text(encoding="utf-8")
    if (after := BLOCK.sub(again, before)) != before:
        page.write_text(after, encoding="utf-8")
    yield from changed
