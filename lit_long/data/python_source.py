"""One Python source file, taken apart: its code without docstrings, and its docstrings without code.

The syntax tree says where the docstrings are; the text around them is kept as it was written, comments and layout
included.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lit_long.config import UserError

_MIN_CHARACTERS = 200  # less than that is an empty __init__.py
_MAX_CODE_CHARACTERS = 300_000  # longer ones are tables written by programs
_MAX_LINE = 1000
_GENERATED = re.compile(r"auto(matically)?[- ]?generated|generated from '|do not (edit|modify)", re.IGNORECASE)
_HELP_TOPICS = "pydoc_data.topics"

_Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Source(NamedTuple):
    """``code`` is empty if there is none worth reading; ``docs`` are (name, text) pairs, at most one but for the help
    topics."""

    code: str
    docs: list[tuple[str, str]]


def read_source(name: str, path: Path) -> Source:
    """Take the module ``name`` at ``path`` apart. Files that do not parse, or that a program wrote, give an empty
    Source.

    Raises UserError if the file cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        return Source("", [])
    except OSError as error:
        raise UserError(f"Cannot read {path}, a source of the built-in corpus: {error.strerror}.") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    try:
        with warnings.catch_warnings(action="ignore"):  # invalid escapes in other people's strings
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Source("", [])
    if name == _HELP_TOPICS:
        return Source("", _help_topics(tree))
    if _GENERATED.search(text[:1000]) or max(map(len, text.split("\n"))) > _MAX_LINE:
        return Source("", [])
    code, docs = _without_docstrings(text, tree), _docstrings_only(name, tree)
    is_code = _MIN_CHARACTERS <= len(code) <= _MAX_CODE_CHARACTERS
    return Source(code if is_code else "", [(name, docs)] if len(docs) >= _MIN_CHARACTERS else [])


def _definitions(node: ast.AST, qualified: str) -> Iterator[tuple[_Definition, str]]:
    """The module, classes and functions below ``node`` with their qualified names, in source order."""
    if isinstance(node, _Definition):
        yield node, qualified
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Definition):
            yield from _definitions(child, f"{qualified}.{child.name}")
        elif isinstance(child, (ast.stmt, ast.excepthandler, ast.match_case)):
            yield from _definitions(child, qualified)


def _docstrings_only(name: str, tree: ast.Module) -> str:
    """Every docstring under a heading with its qualified name."""
    parts = []
    for node, qualified in _definitions(tree, name):
        docstring = ast.get_docstring(node)
        if docstring:
            heading = "#" if isinstance(node, ast.Module) else "##"
            parts.append(f"{heading} {qualified}\n\n{docstring.strip()}\n")
    return _encodable("\n".join(parts))


def _without_docstrings(text: str, tree: ast.Module) -> str:
    """The source with every docstring cut out; a body that would be left empty becomes ``pass``."""
    lines = text.split("\n")
    cuts = [node.body for node, _ in _definitions(tree, "") if ast.get_docstring(node, clean=False) is not None]
    for body in sorted(cuts, key=lambda body: body[0].lineno, reverse=True):  # from the bottom up, so that numbers stay right
        docstring = body[0]
        first, last = docstring.lineno - 1, docstring.end_lineno
        # The tree counts columns in UTF-8 bytes.
        before = lines[first].encode()[: docstring.col_offset].decode()
        after = lines[last - 1].encode()[docstring.end_col_offset :].decode()
        if len(body) > 1 and not before.strip() and (not after.strip() or after.lstrip().startswith("#")):
            blank_follows = last < len(lines) and not lines[last].strip()
            lines[first : last + blank_follows] = []
        else:
            lines[first:last] = [f"{before}pass{after}"]
    return "\n".join(lines).strip("\n") + "\n"


def _help_topics(tree: ast.Module) -> list[tuple[str, str]]:
    """The topics of Python's own help, which its source holds as one dictionary."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics = ast.literal_eval(node.value)
            return [(topic, _encodable(text.strip() + "\n")) for topic, text in sorted(topics.items())]
    return []


def _encodable(text: str) -> str:
    """A docstring may hold half of a surrogate pair, which UTF-8 has no bytes for."""
    return text.encode("utf-8", "replace").decode()
