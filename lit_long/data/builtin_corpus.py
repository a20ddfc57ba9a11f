"""The built-in corpus: real documents that every installation already has, so that nothing is downloaded.

Two domains come out of the Python sources on this machine (the standard library, and the packages named in the config):

    code   each source file with its docstrings taken out
    docs   the docstrings of each source file in source order, under their qualified names; and the topics of Python's own help

A document is one source file or one help topic. Whole top-level modules (``json``, ``networkx``) are held out for
validation, so that the code of a module is never trained on while its docstrings are tested, or the other way round;
and a text that stands in the validation split is dropped from the training split. Packages are parsed, never
imported.

A source file is taken apart by its syntax tree, which says where the docstrings are; the text around them is kept as it was written,
comments and layout included.
"""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import re
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from lit_long.config import CorpusConfig, UserError
from lit_long.data.pool import available_cores, process_pool
from lit_long.data.token_store import SPLITS
from lit_long.data.tokenizer import borrowed_digest
from lit_long.files import Log

DOMAINS = ("code", "docs")
_MAX_WORKERS = 8  # starting more processes costs more than they save

# Tests are near-copies of one another; vendored folders are copies of modules that may be held out.
_SKIPPED_FOLDERS = {
    *("test", "tests", "testing", "_testing", "idle_test", "site-packages"),
    *("_vendor", "vendor", "externals", "extern", "_external"),
}
_SKIPPED_FILES = re.compile(r"(test_.*|.*_test|.*_pb2|conftest|_sysconfigdata.*)\.py")


class Document(NamedTuple):
    """One document: ``name`` is the module's qualified name or the help topic's."""

    name: str
    text: str


Corpus = dict[tuple[str, str], list[Document]]


def fingerprint(corpus: CorpusConfig, builtin: bool = True) -> dict:
    """What the corpus is made from: the versions of Python, of the packages and of the tokenizer trainer, and a borrowed
    tokenizer's digest; only the last two if the built-in corpus is not in use. Reads no source.

    Raises UserError if a package is not installed.
    """
    tokenizer = {"tokenizer": borrowed_digest(corpus.tokenizer)} if corpus.tokenizer else {}
    if not builtin:
        return tokenizer | {"tokenizers": importlib.metadata.version("tokenizers")}
    return tokenizer | {
        "python": platform.python_version(),
        "packages": {name: _installed_version(name) for name in sorted(corpus.packages)},
        "tokenizers": importlib.metadata.version("tokenizers"),
    }


def build_corpus(corpus: CorpusConfig, report: Callable[[str, float], None], log: Path | None = None) -> Corpus:
    """All documents by (domain, split), in an order that depends on the sources alone. ``report(message, fraction
    done)``.

    Args:
        log: a file that keeps what was read, so that a call after an interruption goes on where that one was.

    Raises UserError for unknown packages or validation modules, unreadable files, and a domain or split left empty.
    """
    modules = _top_level_modules(corpus)
    _check_validation(corpus.validation, modules)
    files = [(module, name, path) for module in sorted(modules) for name, path in _source_files(module, modules[module])]
    found: Corpus = {key: [] for key in product(DOMAINS, SPLITS)}
    held_out = set(corpus.validation)
    for (module, name, _), source in zip(files, _read_all(files, report, log)):
        split = "validation" if module in held_out else "train"
        if source.code:
            found["code", split].append(Document(name, source.code))
        found["docs", split].extend(Document(*doc) for doc in source.docs)
    _drop_duplicates(found)
    for (domain, split), documents in found.items():
        if not documents:
            key = "validation" if split == "validation" else "packages"
            raise UserError(
                f"The {split} split of the built-in corpus has no documents in domain '{domain}'. "
                f"Name larger modules in data.corpus.{key}."
            )
    return found


def _top_level_modules(corpus: CorpusConfig) -> dict[str, Path]:
    """Every top-level module of the standard library and of the packages: name → its file or folder."""
    if corpus.name != "builtin":
        raise UserError(f"data.corpus.name is '{corpus.name}'; the only corpus that can be built is 'builtin'.")
    library = Path(sysconfig.get_paths()["stdlib"])
    modules = {}
    for path in library.iterdir():
        is_module = path.suffix == ".py" or (path.is_dir() and path.name not in _SKIPPED_FOLDERS)
        if is_module and path.stem.isidentifier() and path.name != "__pycache__":
            modules[path.stem] = path
    return modules | {name: _package_path(name) for name in corpus.packages}


def _package_path(name: str) -> Path:
    """The folder or file of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name) if name.isidentifier() else None  # a dotted name would import its parent
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise UserError(
            f"data.corpus.packages names '{name}', which is not an installed Python package (its import name is wanted, "
            f"as in `import sklearn`). Install it, or take it out of the list."
        )
    return Path(spec.submodule_search_locations[0] if spec.submodule_search_locations else spec.origin)


@functools.cache  # a plan asks for each of its stages
def _installed_version(name: str) -> str:
    """Version of the distribution that an import name belongs to."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        path = _package_path(name)
    # sklearn is shipped by scikit-learn. importlib.metadata.packages_distributions would tell, but takes a second.
    owned = f"\n{name}/__init__.py," if path.is_dir() else f"\n{name}.py,"
    for folder in sorted(path.parent.glob("*.dist-info")):
        record = folder / "RECORD"
        if record.is_file() and owned in "\n" + record.read_text(encoding="utf-8"):
            return importlib.metadata.Distribution.at(folder).version
    raise UserError(
        f"data.corpus.packages names '{name}', whose version is unknown: it lies in {path} without having been installed. "
        f"Install it with pip, or take it out of the list."
    )


def _check_validation(validation: list[str], modules: dict[str, Path]) -> None:
    for name in validation:
        if name not in modules:
            near = difflib.get_close_matches(name, modules, n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise UserError(
                f"data.corpus.validation names '{name}', which is neither a top-level module of the standard library nor one of "
                f"data.corpus.packages.{hint}"
            )


def _source_files(module: str, path: Path) -> Iterable[tuple[str, Path]]:
    """(qualified name, file) of a module's sources, sorted."""
    if path.is_file():
        return [(module, path)] if not _SKIPPED_FILES.fullmatch(path.name) else []
    files = []
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_FOLDERS]
        files += [Path(folder, name) for name in names if name.endswith(".py") and not _SKIPPED_FILES.fullmatch(name)]
    named = [(".".join((module, *file.relative_to(path).with_suffix("").parts)), file) for file in files]
    return sorted((name.removesuffix(".__init__"), file) for name, file in named)


def _read_all(files: list[tuple[str, str, Path]], report: Callable[[str, float], None], log: Path | None) -> Iterator[Source]:
    """The sources in the order of ``files``, parsed on all cores; those that are in the log are not parsed again."""
    kept = Log(log, _recipe(files)) if log else None
    there = [Source(code, [tuple(doc) for doc in docs]) for code, docs in kept.entries] if kept else []
    yield from there
    rest = files[len(there) :]
    if not rest:
        return
    with process_pool(min(available_cores(), _MAX_WORKERS)) as pool:
        sources = pool.map(read_source, *zip(*[(name, path) for _, name, path in rest]), chunksize=16)
        for done, source in enumerate(sources, start=len(there)):
            if kept:
                kept.add(source)
            if done % 256 == 0 or done == len(there):
                report("reading sources", done / len(files))
            yield source


def _recipe(files: list[tuple[str, str, Path]]) -> str:
    """sha256 of what the sources are made from: the files, as far as their names, sizes and times tell, and the code that reads them."""
    about: list[Any] = [platform.python_version(), inspect.getsource(sys.modules[__name__])]
    for _, name, path in files:
        with suppress(OSError):  # reading it will say
            about.append([name, path.stat().st_size, path.stat().st_mtime_ns])
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _drop_duplicates(found: Corpus) -> None:
    """Keep the first of equal texts in a domain; validation comes first, so that none of its texts is trained on."""
    for domain in DOMAINS:
        seen: set[bytes] = set()
        for split in reversed(SPLITS):
            kept = []
            for document in found[domain, split]:
                digest = hashlib.sha256(document.text.encode()).digest()
                if digest not in seen:
                    seen.add(digest)
                    kept.append(document)
            found[domain, split] = kept


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
