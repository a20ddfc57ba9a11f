"""The token store: a folder of memory-mapped token files with a manifest, written once (prepare.py) and then only read.

FOLDER/manifest.json                      what is there, its sizes and its digest; written last, so its presence means complete
FOLDER/tokenizer.json
FOLDER/DOMAIN/SPLIT/tokens.bin            all documents end to end, uint16 (uint32 for vocabularies over 65,535)
FOLDER/DOMAIN/SPLIT/offsets.npy           int64 [documents + 1]: document i is tokens[offsets[i]:offsets[i + 1]]
FOLDER/DOMAIN/SPLIT/names.json            names of the documents
FOLDER/SOURCE/shards                      the same of one's own sources, in the shards they were tokenised into (shards.py)
FOLDER/SOURCE/SPLIT/index.npy             which of the shards' documents make a split: shard, first token, number of tokens, place in its file

The index is why neither dropping duplicates nor holding documents out rewrites a token. Any document is there at once, and none is read
before it is asked for.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from lit_long.config import CorpusConfig, UserError
from lit_long.data.tokenizer import borrowed_digest, load_tokenizer
from lit_long.pretrained import open_pretrained
from lit_long.pretrained.digests import read_digest
from lit_long.tokenizers.tokenizer import ModelTokenizer

FORMAT = 2
MANIFEST = "manifest.json"
SHARDS = "shards"  # a source's folder of them
SPLITS = ("train", "validation")
INDEX = np.dtype([("shard", "<i4"), ("start", "<i8"), ("tokens", "<i8"), ("place", "<i8")])
LONG_DOCUMENT = 2048  # tokens; the manifest counts the documents that are longer


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

    @property
    def token_count(self) -> int:
        """Tokens of all documents."""
        return len(self.tokens)

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [documents], the separator included."""
        return np.diff(self.offsets)

    @cached_property
    def names(self) -> list[str]:
        """Qualified names of modules, and help topics."""
        return json.loads((self._folder / "names.json").read_text(encoding="utf-8"))

    def name(self, index: int) -> str:
        return self.names[index]


class ShardedDocuments:
    """Like `Documents`, from a source's shards. ``entry`` is the split's in the manifest; ``answered``: whether it is instruction data."""

    def __init__(self, folder: Path, shards: Path, dtype: str, entry: dict, answered: bool = False) -> None:
        self.answered = answered
        self._shards = shards
        self._dtype = dtype
        self._index = np.load(folder / "index.npy", mmap_mode="r")
        self._open: dict[int, np.ndarray] = {}
        self._open_answers: dict[int, np.ndarray] = {}
        self.token_count: int = entry["tokens"]

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        row = self._index[index]
        return self._tokens(int(row["shard"]))[row["start"] : row["start"] + row["tokens"]]

    def answers(self, index: int) -> np.ndarray:
        """int64 [answers, 2]: where the answers of a conversation begin and end, in its tokens."""
        row = self._index[index]
        shard, start = int(row["shard"]), int(row["start"])
        if shard not in self._open_answers:
            file = shard_file(self._shards, shard).with_suffix(".answers")
            self._open_answers[shard] = np.fromfile(file, dtype=np.int64).reshape(-1, 2)
        found = self._open_answers[shard]
        first, stop = np.searchsorted(found[:, 0], [start, start + int(row["tokens"])])
        return found[first:stop] - start

    @property
    def lengths(self) -> np.ndarray:
        """int64 [documents], the separator included; a view of the file."""
        return self._index["tokens"]

    def name(self, index: int) -> str:
        """The document's file, and where in it the document begins."""
        row = self._index[index]
        names = json.loads(shard_file(self._shards, int(row["shard"])).with_suffix(".json").read_text(encoding="utf-8"))["names"]
        place = int(row["place"])
        if len(names) > 1:
            return names[place]
        return f"{names[0]}:{place}" if names else f"row {place}"

    def _tokens(self, shard: int) -> np.ndarray:
        if shard not in self._open:
            self._open[shard] = np.memmap(shard_file(self._shards, shard).with_suffix(".tokens"), dtype=self._dtype, mode="r")
        return self._open[shard]


def describe_longest(documents: Documents | ShardedDocuments) -> str:
    """For messages."""
    return f"the longest has {documents.lengths.max()}" if len(documents) else "there is none at all"


def shard_file(folder: Path, number: int) -> Path:
    """The files of a shard, without their suffix."""
    return folder / f"{number:06}"


def count_lengths(lengths: np.ndarray) -> dict:
    """What the manifest says of documents with these ``lengths`` [documents].

    ``histogram`` has a row for every power of two from the shortest document to the longest: [2^k, documents of 2^k to 2^(k+1) - 1 tokens,
    their tokens].
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    powers = np.frexp(lengths.astype(np.float64))[1] - 1  # exact up to 2^53
    rows = []
    for power in range(int(powers.min()), int(powers.max()) + 1) if len(lengths) else ():
        inside = lengths[powers == power]
        rows.append([2**power, len(inside), int(inside.sum())])
    return {
        "documents": len(lengths),
        "documents_over_2048": int((lengths > LONG_DOCUMENT).sum()),
        "tokens": int(lengths.sum()),
        "histogram": rows,
    }


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
        """What became of the documents of each of one's own sources (`prepare.prepare_sources`)."""
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


def open_store(folder: Path) -> Store:
    """Open a prepared store. Raises UserError if it is missing, incomplete, or not what its manifest says."""
    folder = Path(folder)
    remedy = "Delete the folder and prepare the data again."
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"There is no prepared data in {folder} ({MANIFEST} is missing). Prepare it first.") from None
    except ValueError as error:
        raise UserError(f"{folder / MANIFEST} is not valid JSON: {error}. {remedy}") from error
    if manifest.get("format") != FORMAT:
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
        if read_digest(folder / "tokenizer.json") != manifest["tokenizer"]:
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
            if "".join(map(read_digest, files)) != shard["sha256"]:
                damaged.append(file)
    return damaged


def model_tokenizer(store: Store, corpus: CorpusConfig) -> ModelTokenizer:
    """The tokenizer that a model trained on ``store`` reads and writes with. Our own opens a text, and ends it, with its separator."""
    if corpus.tokenizer:
        if store.manifest["inputs"].get("tokenizer") != borrowed_digest(corpus.tokenizer):
            raise UserError(
                f"data.corpus.tokenizer={corpus.tokenizer} is no longer the tokenizer that wrote the tokens in {store.folder}. Put it back, or prepare "
                f"the data again (the same command makes a store of its own) and train on that."
            )
        return open_pretrained(corpus.tokenizer).tokenizer()
    ends = store.separator
    special = dict.fromkeys(("bos_token", "eos_token"), store.tokenizer.id_to_token(ends))
    where = str(store.folder / "manifest.json")  # not a folder in Hugging Face's form
    return ModelTokenizer(store.tokenizer, bos=ends, eos=(ends,), add_bos=True, separator=ends, special=special, where=where)


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
