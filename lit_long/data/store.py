"""The token store: a folder of memory-mapped token files with a manifest, written once and then only read.

FOLDER/manifest.json                      what is there, its sizes and its digest; written last, so its presence means complete
FOLDER/tokenizer.json
FOLDER/DOMAIN/SPLIT/tokens.bin            all documents end to end, uint16 (uint32 for vocabularies over 65,535)
FOLDER/DOMAIN/SPLIT/offsets.npy           int64 [documents + 1]: document i is tokens[offsets[i]:offsets[i + 1]]
FOLDER/DOMAIN/SPLIT/names.json            names of the documents
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from lit_long.checkpoints.external import open_external
from lit_long.checkpoints.tokenization import Tokenization
from lit_long.config import CorpusConfig, UserError
from lit_long.data.corpus import SPLITS, Document, build_corpus, fingerprint
from lit_long.data.tokenizer import SEPARATOR, borrow_tokenizer, encode_documents, load_tokenizer, train_tokenizer

LONG_DOCUMENT = 2048  # tokens; the manifest counts the documents that are longer
_FORMAT = 2
_MANIFEST = "manifest.json"

Report = Callable[[str, float], None]


class Documents:
    """The documents of one domain and split. ``documents[i]`` is uint16 or uint32 [tokens], a view of the file."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self._folder = folder
        self.tokens = np.memmap(folder / "tokens.bin", dtype=dtype, mode="r")
        self.offsets = np.load(folder / "offsets.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [documents], the separator included."""
        return np.diff(self.offsets)

    @cached_property
    def names(self) -> list[str]:
        """Qualified names of modules, and help topics."""
        return json.loads((self._folder / "names.json").read_text(encoding="utf-8"))


class Store:
    """A prepared corpus, opened for reading with `open_store`. ``manifest`` is what `prepare` returned."""

    def __init__(self, folder: Path, manifest: dict) -> None:
        self.folder = folder
        self.manifest = manifest
        self._documents = {
            (domain, split): Documents(folder / domain / split, manifest["dtype"]) for domain in self.domains for split in SPLITS
        }

    @property
    def separator(self) -> int:
        """The id that opens every document."""
        return self.manifest["separator"]

    @property
    def domains(self) -> list[str]:
        """Names of the corpus domains."""
        return list(self.manifest["domains"])

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that wrote the tokens."""
        return load_tokenizer(self.folder / "tokenizer.json")

    def documents(self, domain: str, split: str) -> Documents:
        """The documents of a domain's ``train`` or ``validation`` split. Raises UserError for an unknown domain."""
        if (domain, split) not in self._documents:
            raise UserError(f"There is no {split} split of a domain '{domain}'. Domains: {', '.join(self.domains)}.")
        return self._documents[domain, split]


def prepare(corpus: CorpusConfig, folder: Path, report: Report = lambda message, done: None) -> dict:
    """Build the corpus and its tokenizer, write the store into ``folder``, and return the manifest.

    ``report(message, fraction done)`` is called along the way. Raises UserError as `build_corpus` and
    `train_tokenizer` do.
    """
    inputs = fingerprint(corpus)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MANIFEST).unlink(missing_ok=True)  # a rewrite that is interrupted must not look complete
    found = build_corpus(corpus, lambda message, done: report(message, 0.4 * done))
    if corpus.tokenizer:
        tokenizer, separator = borrow_tokenizer(corpus.tokenizer)
    else:
        report("training the tokenizer", 0.4)
        training_texts = [document.text for (_, split), documents in found.items() if split == "train" for document in documents]
        tokenizer = train_tokenizer(training_texts, corpus.vocab_size)
        separator = tokenizer.token_to_id(SEPARATOR)
    tokenizer.save(str(folder / "tokenizer.json"))
    dtype = "uint16" if tokenizer.get_vocab_size() <= 65_535 else "uint32"
    domains: dict[str, dict] = {}
    for done, ((domain, split), documents) in enumerate(found.items()):
        report(f"encoding {domain}, {split}", 0.5 + 0.5 * done / len(found))
        domains.setdefault(domain, {})[split] = _write(folder / domain / split, documents, tokenizer, separator, dtype)
    manifest = {
        "format": _FORMAT,
        "digest": _digest(folder, domains),
        "tokenizer": _file_sha256(folder / "tokenizer.json"),
        "vocab_size": tokenizer.get_vocab_size(),
        "separator": separator,
        "dtype": dtype,
        "inputs": inputs,
        "domains": domains,
    }
    unfinished = folder / f"{_MANIFEST}.tmp"
    unfinished.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / _MANIFEST)
    report("data ready", 1.0)
    return manifest


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
                _check_sizes(folder / domain / split, entry, np.dtype(manifest["dtype"]).itemsize)
        if _file_sha256(folder / "tokenizer.json") != manifest["tokenizer"]:
            raise UserError(f"{folder / 'tokenizer.json'} is not the one that wrote the tokens. {remedy}")
        return Store(folder, manifest)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"The prepared data in {folder} is damaged: {error}. {remedy}") from error


def words_of(store: Store, corpus: CorpusConfig) -> Tokenization:
    """The tokenizer that a model trained on ``store`` reads and writes with. Our own opens a text, and ends it, with its separator."""
    if corpus.tokenizer:
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
    return {
        "documents": len(documents),
        "documents_over_2048": sum(length > LONG_DOCUMENT for length in lengths),
        "tokens": sum(lengths),
        "bytes": sum(len(document.text.encode()) for document in documents),
    }


def _digest(folder: Path, domains: dict) -> str:
    """sha256 over the tokenizer and over every token and offset file, with their paths."""
    digest = hashlib.sha256()
    splits = [f"{domain}/{split}/{file}" for domain in domains for split in SPLITS for file in ("tokens.bin", "offsets.npy")]
    for name in ["tokenizer.json", *splits]:
        digest.update(f"{name} {_file_sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
