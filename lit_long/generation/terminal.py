"""Prompts from the command line, a file or standard input; texts to the terminal, in order and as they come."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TextIO

from lit_long.config import UserError


def read_prompts(prompt: str | None, prompt_file: str, prompts: list[str], read_file: Callable[[str], list[str]]) -> list[str]:
    """The prompts that one of the three keys gives; ``prompt=-`` is standard input, ``read_file`` gets what ``prompt_file`` holds.

    Raises:
        UserError: none or several of the keys are given, or what they name cannot be read.
    """
    given = [
        key for key, is_given in (("prompt", prompt is not None), ("prompt_file", prompt_file), ("prompts", prompts)) if is_given
    ]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise UserError(
            f"command line: give one of prompt=TEXT (- for standard input), prompt_file=FILE, prompts=[…]; there is {found}"
        )
    try:
        if prompt_file:
            return read_file(prompt_file)
        return [sys.stdin.read()] if prompt == "-" else [prompt] if prompt is not None else prompts
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{given[0]}={prompt_file or prompt}: cannot be read as UTF-8 text: {error}") from None


class InOrder:
    """Writes texts that grow at the same time one after another, a blank line between them: the first one as it grows, the others as
    soon as those before are complete."""

    def __init__(self, stream: TextIO, texts: int) -> None:
        self.stream = stream
        self.waiting, self.complete = [""] * texts, [False] * texts
        self.current = 0

    def __call__(self, text: int, piece: str, last: bool) -> None:
        self.waiting[text] += piece
        self.complete[text] = last
        while self.current < len(self.waiting):
            self.stream.write(self.waiting[self.current])
            self.waiting[self.current] = ""
            if not self.complete[self.current]:
                break
            self.current += 1
            self.stream.write("\n\n" if self.current < len(self.waiting) else "\n")
        self.stream.flush()
