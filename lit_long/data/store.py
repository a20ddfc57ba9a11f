"""The token store: a folder of memory-mapped token files with a manifest, written once and then only read.

FOLDER/manifest.json                      what is there, its sizes and its digest; written last, so its presence means complete
FOLDER/tokenizer.json
FOLDER/DOMAIN/SPLIT/tokens.bin            all documents end to end, uint16 (uint32 for vocabularies over 65,535)
FOLDER/DOMAIN/SPLIT/offsets.npy           int64 [documents + 1]: document i is tokens[offsets[i]:offsets[i + 1]]
FOLDER/DOMAIN/SPLIT/names.json            names of the documents
FOLDER/SOURCE/shards, FOLDER/SOURCE/SPLIT/index.npy    the same of one's own sources: see shards.py and documents.py
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from lit_long.config import CorpusConfig, SourceConfig, UserError
from lit_long.data.assemble import make_share, prepare_sources
from lit_long.data.corpus import SPLITS, Document, build_corpus, fingerprint
from lit_long.data.documents import LONG_DOCUMENT, Documents, ShardedDocuments, counts, shard_file
from lit_long.data.paths import tell_left_out
from lit_long.data.pool import available_cores
from lit_long.data.shards import FOLDER as SHARDS
from lit_long.data.sources import left_out, settle_source
from lit_long.data.tokenizer import borrowed_digest, encode_documents, load_tokenizer
from lit_long.data.words import file_sha256, settle_words
from lit_long.files import write_atomically
from lit_long.pretrained.external import open_external
from lit_long.tokenizers.tokenizer import Tokenization

__all__ = [
    "LONG_DOCUMENT",
    "Documents",
    "ShardedDocuments",
    "Store",
    "open_store",
    "prepare",
    "prepare_share",
    "verify",
    "words_of",
]

_FORMAT = 2
_MANIFEST = "manifest.json"

Report = Callable[[str, float], None]


class Store:
    """A prepared corpus, opened for reading with `open_store`. ``manifest`` is what `prepare` returned."""

    def __init__(self, folder: Path, manifest: dict) -> None:
        self.folder = folder
        self.manifest = manifest
        self._documents = {(domain, split): self._open(domain, split) for domain in self.domains for split in SPLITS}

    def _open(self, domain: str, split: str) -> Documents | ShardedDocuments:
        folder, dtype = self.folder / domain / split, self.manifest["dtype"]
        if domain in self.sources:
            entry = self.manifest["domains"][domain][split]
            return ShardedDocuments(folder, self.folder / domain / SHARDS, dtype, entry, domain in self.conversations)
        return Documents(folder, dtype)

    @property
    def separator(self) -> int:
        """The id that opens every document."""
        return self.manifest["separator"]

    @property
    def domains(self) -> list[str]:
        """Names of the domains: the corpus' own and the sources."""
        return list(self.manifest["domains"])

    @property
    def sources(self) -> dict[str, dict]:
        """What became of the documents of each of one's own sources (`assemble.prepare_sources`)."""
        return self.manifest.get("sources", {})

    @property
    def conversations(self) -> list[str]:
        """Names of the sources of instruction data."""
        return [name for name, account in self.sources.items() if "instruct" in account]

    @property
    def held_out_domains(self) -> list[str]:
        """Names of the domains that have held-out documents."""
        return [name for name, splits in self.manifest["domains"].items() if splits["validation"]["documents"]]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that wrote the tokens."""
        return load_tokenizer(self.folder / "tokenizer.json")

    def documents(self, domain: str, split: str) -> Documents | ShardedDocuments:
        """The documents of a domain's ``train`` or ``validation`` split. Raises UserError for an unknown domain."""
        if (domain, split) not in self._documents:
            raise UserError(f"There is no {split} split of a domain '{domain}'. Domains: {', '.join(self.domains)}.")
        return self._documents[domain, split]


def prepare(
    corpus: CorpusConfig,
    folder: Path,
    report: Report = lambda message, done: None,
    sources: dict[str, SourceConfig] | None = None,
    builtin: bool = True,
    processes: int = 0,
) -> dict:
    """Build the corpus and its tokenizer, write the store into ``folder``, and return the manifest.

    Called again after it was interrupted, it goes on with the sources' shards that are not there yet; the result is the same.

    Args:
        report: called as ``report(message, fraction done)`` along the way.
        sources: one's own documents, by the name of their domain.
        builtin: whether the built-in corpus is a part of it.
        processes: that tokenise sources side by side; 0 = one a core. The store does not depend on it.

    Raises:
        UserError: as `build_corpus`, `train_tokenizer`, `settle_source` and `prepare_sources` do.
    """
    sources = {name: settle_source(name, source) for name, source in sorted((sources or {}).items())}
    inputs = fingerprint(corpus, builtin)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MANIFEST).unlink(missing_ok=True)  # a rewrite that is interrupted must not look complete
    found = build_corpus(corpus, lambda message, done: report(message, 0.4 * done)) if builtin else {}
    words, tokenizer = settle_words(corpus, folder, lambda: found, sources, inputs, report)
    domains: dict[str, dict] = {}
    for done, ((domain, split), documents) in enumerate(found.items()):
        report(f"encoding {domain}, {split}", 0.5 + (0.1 if sources else 0.5) * done / len(found))
        entry = _write(folder / domain / split, documents, tokenizer, words.separator, words.dtype)
        domains.setdefault(domain, {})[split] = entry
    accounts: dict[str, dict] = {}
    if sources:
        start = 0.6 if builtin else 0.1
        own, accounts = prepare_sources(
            folder,
            sources,
            words,
            processes or available_cores(),
            lambda message, done: report(message, start + (0.99 - start) * done),
        )
        domains |= own
    told = []
    for name, account in accounts.items():
        if said := tell_left_out(left_out(name, sources[name])):
            account["files_left_out"] = said
            told.append(f" · {name}: {said}")
        if count := account.get("instruct", {}).get("left_out"):
            told.append(f" · {name}: {count:,} conversations left out")
    manifest = {
        "format": _FORMAT,
        "digest": _digest(folder, domains, accounts),
        "tokenizer": words.digest,
        "vocab_size": tokenizer.get_vocab_size(),
        "separator": words.separator,
        "dtype": words.dtype,
        "inputs": inputs,
        "domains": domains,
    } | ({"sources": accounts} if accounts else {})
    write_atomically(folder / _MANIFEST, json.dumps(manifest, indent=2) + "\n")
    report(f"data ready{''.join(told)}", 1.0)
    return manifest


def prepare_share(
    corpus: CorpusConfig,
    folder: Path,
    share: tuple[int, int],
    report: Report,
    sources: dict[str, SourceConfig],
    builtin: bool,
    processes: int,
    alone: AbstractContextManager,
) -> tuple[int, int]:
    """Make one share of the sources' shards: `prepare` finds them there, and makes what is missing and the rest of the store.

    Any number of calls may run at once, on machines that share the file system, as long as no `prepare` does.

    Args:
        share: (i, n) is the i-th of n, counted from 1.
        alone: entered while the tokenizer is settled, so that the first of many trains it and the others do not.

    Returns:
        How many shards there are now, of all shares, and how many there will be.
    """
    sources = {name: settle_source(name, source) for name, source in sorted(sources.items())}
    inputs = fingerprint(corpus, builtin)
    with alone:
        words, _ = settle_words(corpus, folder, lambda: build_corpus(corpus, report) if builtin else {}, sources, inputs, report)
    return make_share(folder, sources, words, share, processes or available_cores(), report)


def open_store(folder: Path) -> Store:
    """Open a prepared store. Raises UserError if it is missing, incomplete, or not what its manifest says."""
    folder = Path(folder)
    remedy = "Delete the folder and prepare the data again."
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no prepared data in {folder} ({_MANIFEST} is missing). Prepare it first.") from None
    except ValueError as error:
        raise UserError(f"{folder / _MANIFEST} is not valid JSON: {error}. {remedy}") from error
    if manifest.get("format") != _FORMAT:
        raise UserError(f"{folder} was written by another version of lit-long. {remedy}")
    try:
        for domain, splits in manifest["domains"].items():
            for split, entry in splits.items():
                if domain not in manifest.get("sources", {}):
                    _check_sizes(folder / domain / split, entry, np.dtype(manifest["dtype"]).itemsize)
                elif (rows := len(np.load(folder / domain / split / "index.npy", mmap_mode="r"))) != entry["documents"]:
                    raise ValueError(f"{folder / domain / split / 'index.npy'} has {rows} rows instead of {entry['documents']}")
        for name, account in manifest.get("sources", {}).items():
            _check_shards(folder / name / SHARDS, account["shards"], np.dtype(manifest["dtype"]).itemsize)
        if file_sha256(folder / "tokenizer.json") != manifest["tokenizer"]:
            raise UserError(f"{folder / 'tokenizer.json'} is not the one that wrote the tokens. {remedy}")
        return Store(folder, manifest)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"The prepared data in {folder} is damaged: {error}. {remedy}") from error


def verify(store: Store) -> list[Path]:
    """Files of the sources' shards whose content is not what was written; reads all of them."""
    damaged = []
    for name, account in store.sources.items():
        for number, shard in enumerate(account["shards"]):
            file = shard_file(store.folder / name / SHARDS, number).with_suffix(".tokens")
            files = [file, file.with_suffix(".answers")] if "instruct" in account else [file]
            if "".join(map(file_sha256, files)) != shard["sha256"]:
                damaged.append(file)
    return damaged


def words_of(store: Store, corpus: CorpusConfig) -> Tokenization:
    """The tokenizer that a model trained on ``store`` reads and writes with. Our own opens a text, and ends it, with its separator."""
    if corpus.tokenizer:
        if store.manifest["inputs"].get("tokenizer") != borrowed_digest(corpus.tokenizer):
            raise UserError(
                f"data.corpus.tokenizer={corpus.tokenizer} is no longer the tokenizer that wrote the tokens in {store.folder}. Put it back, or prepare "
                f"the data again (the same command makes a store of its own) and train on that."
            )
        return open_external(corpus.tokenizer).tokenization()
    ends = store.separator
    special = dict.fromkeys(("bos_token", "eos_token"), store.tokenizer.id_to_token(ends))
    where = str(store.folder / "manifest.json")  # not a folder in Hugging Face's form
    return Tokenization(store.tokenizer, bos=ends, eos=(ends,), add_bos=True, separator=ends, special=special, where=where)


def _check_sizes(folder: Path, entry: dict, item_bytes: int) -> None:
    """Raise ValueError unless the files have the sizes that the manifest tells."""
    file_bytes = (folder / "tokens.bin").stat().st_size
    if file_bytes != entry["tokens"] * item_bytes:
        raise ValueError(f"{folder / 'tokens.bin'} has {file_bytes} bytes instead of {entry['tokens'] * item_bytes}")
    offsets = np.load(folder / "offsets.npy", mmap_mode="r")
    if len(offsets) != entry["documents"] + 1 or offsets[-1] != entry["tokens"]:
        raise ValueError(f"{folder / 'offsets.npy'} does not fit the manifest")


def _check_shards(folder: Path, shards: list[dict], item_bytes: int) -> None:
    """Raise ValueError unless the shards have the sizes that the manifest tells."""
    for number, shard in enumerate(shards):
        file = shard_file(folder, number).with_suffix(".tokens")
        if (file_bytes := file.stat().st_size) != shard["tokens"] * item_bytes:
            raise ValueError(f"{file} has {file_bytes} bytes instead of {shard['tokens'] * item_bytes}")


def _write(folder: Path, documents: list[Document], tokenizer: Tokenizer, separator: int, dtype: str) -> dict:
    """Write one split and return its entry in the manifest. ``bytes`` are of the texts (UTF-8), without separators."""
    folder.mkdir(parents=True, exist_ok=True)
    lengths = []
    with (folder / "tokens.bin").open("wb") as file:
        for tokens in encode_documents(tokenizer, [document.text for document in documents], separator):
            file.write(tokens.astype(dtype).tobytes())
            lengths.append(len(tokens))
    np.save(folder / "offsets.npy", np.cumsum([0, *lengths], dtype=np.int64))
    (folder / "names.json").write_text(json.dumps([document.name for document in documents]), encoding="utf-8")
    return counts(np.array(lengths)) | {"bytes": sum(len(document.text.encode()) for document in documents)}


def _digest(folder: Path, domains: dict, accounts: dict | None = None) -> str:
    """sha256 over the tokenizer and over every token and offset file, with their paths. Of shards and indices their checksums stand in."""
    digest = hashlib.sha256()
    accounts = accounts or {}
    splits = [
        f"{domain}/{split}/{file}"
        for domain in domains
        if domain not in accounts
        for split in SPLITS
        for file in ("tokens.bin", "offsets.npy")
    ]
    for name in ["tokenizer.json", *splits]:
        digest.update(f"{name} {file_sha256(folder / name)}\n".encode())
    for name, account in accounts.items():
        sums = [shard["sha256"] for shard in account["shards"]] + [domains[name][split]["index"] for split in SPLITS]
        digest.update(f"{name} {' '.join(sums)}\n".encode())
    return digest.hexdigest()
