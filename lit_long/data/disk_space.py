"""How much disk the tokens of one's own sources will take, estimated from the sizes of their files before anything is read.

An estimate, for how many bytes make a token depends on language and vocabulary, and how much of a file is text on the file. Hence two
numbers: what to tell, and what is certainly too little to begin with.
"""

from __future__ import annotations

from pathlib import Path

from lit_long.config import CorpusConfig, SourceConfig
from lit_long.data.hub import HUGGING_FACE
from lit_long.data.paths import FileFormat, Listing, detect_format, files_below, list_files
from lit_long.data.token_store import SHARDS
from lit_long.data.tokenizer import borrow_tokenizer

BYTES_PER_TOKEN = 4  # of English text, with a vocabulary of 32,000
_COMPRESSED, _PARQUET = 3, 2  # bytes of text in a byte of such a file


def estimate_disk_space(corpus: CorpusConfig, sources: dict[str, SourceConfig], folder: Path) -> tuple[int, int]:
    """Bytes that resolved sources' shards will still need in ``folder``: (about, at least). Data sets on the hub count as nothing.

    Where documents are left out nobody can say how many bytes remain: at least none. Rows may hold much besides the text.
    """
    vocabulary = borrow_tokenizer(corpus.tokenizer)[0].get_vocab_size() if corpus.tokenizer and sources else corpus.vocab_size
    token_bytes = 2 if vocabulary <= 65_535 else 4
    about = least = 0
    for name, source in sources.items():
        there = sum(file.stat().st_size for file in (folder / name / SHARDS).glob("*.tokens"))
        size = int(_text_bytes(name, source) * source.keep) * token_bytes // BYTES_PER_TOKEN
        about += max(0, size - there)
        if source.min_characters <= 1 and not source.max_characters and not source.where:
            least += max(0, size // (2 if source.kind == "text" else 10) - there)
    return about, least


def _text_bytes(name: str, source: SourceConfig) -> int:
    key = f"data.sources.{name}"
    if source.kind != "hf":
        listing = list_files(key, source.path, source.kind, source.encoding)
        files, formats = listing.files, listing.formats
    else:
        folder = Path(source.path.removeprefix(HUGGING_FACE))
        files = files_below(key, Listing(folder)) if folder.is_dir() else []
        formats = [detect_format(key, file) for file in files]
    return sum(file.stat().st_size * _inflation(form) for file, form in zip(files, formats))


def _inflation(form: FileFormat) -> int:
    return _PARQUET if form.kind == "parquet" else _COMPRESSED if form.compression else 1
