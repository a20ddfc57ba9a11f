"""The built-in corpus: real documents that every installation already has, so that nothing is downloaded.

Two domains come out of the Python sources on this machine (the standard library, and the packages named in the config):

    code   each source file with its docstrings taken out
    docs   the docstrings of each source file in source order, under their qualified names; and the topics of Python's own help

A document is one source file or one help topic. Whole top-level modules (``json``, ``networkx``) are held out for
validation, so that the code of a module is never trained on while its docstrings are tested, or the other way round;
and a text that stands in the validation split is dropped from the training split. Packages are parsed, never
imported.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sysconfig
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import NamedTuple

from lit_long.config import CorpusConfig, UserError
from lit_long.data.pool import available_cores, side_by_side
from lit_long.data.python_source import read_source
from lit_long.data.tokenizer import borrowed_digest

DOMAINS = ("code", "docs")
RETRIEVAL, COPYING = MADE = ("retrieval", "copying")  # in a mixture's weights: tasks made from ``docs``, without end
SPLITS = ("train", "validation")
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


def build_corpus(corpus: CorpusConfig, report: Callable[[str, float], None]) -> Corpus:
    """All documents by (domain, split), in an order that depends on the sources alone. ``report(message, fraction
    done)``.

    Raises UserError for unknown packages or validation modules, unreadable files, and a domain or split left empty.
    """
    modules = _top_level_modules(corpus)
    _check_validation(corpus.validation, modules)
    files = [(module, name, path) for module in sorted(modules) for name, path in _source_files(module, modules[module])]
    found: Corpus = {key: [] for key in product(DOMAINS, SPLITS)}
    held_out = set(corpus.validation)
    for (module, name, _), source in zip(files, _read_all(files, report)):
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


def _read_all(files: list[tuple[str, str, Path]], report: Callable[[str, float], None]):
    """The sources in the order of ``files``, parsed on all cores."""
    with side_by_side(min(available_cores(), _MAX_WORKERS)) as pool:
        sources = pool.map(read_source, *zip(*[(name, path) for _, name, path in files]), chunksize=16)
        for done, source in enumerate(sources):
            if done % 256 == 0:
                report("reading sources", done / len(files))
            yield source


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
