"""Held-out texts in memory, tokenised for the model at hand: what the measurements read when no prepared store belongs to the model.

`InMemoryCorpus` answers the questions that held_out.py and retrieval.py ask of a `Store` (documents of a domain, tokenizer, separator), so
that they are the same code for a stage of ours and for weights from anywhere. Every text is held out: nothing is trained on here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
from tokenizers import Tokenizer

from lit_long.config import CorpusConfig, UserError
from lit_long.data.builtin_corpus import build_corpus
from lit_long.data.sources import read_documents
from lit_long.tokenizers.tokenizer import ModelTokenizer

OWN = "text"  # the domain of one's own texts


class Documents:
    """Tokenised documents of one domain. ``documents[i]`` is int64 [tokens], the separator first."""

    def __init__(self, rows: Sequence[np.ndarray]) -> None:
        self.rows = rows
        self.lengths = np.array([len(row) for row in rows], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.rows[index]


class InMemoryCorpus:
    """Texts by domain. Tokenised when first asked for."""

    conversations = ()  # they are plain texts, all of them

    def __init__(self, tokenizer: ModelTokenizer, texts: Mapping[str, Sequence[str]]) -> None:
        self._tokenizer, self.texts = tokenizer, {domain: list(rows) for domain, rows in texts.items()}
        self._documents: dict[str, Documents] = {}

    @property
    def domains(self) -> list[str]:
        return list(self.texts)

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer.tokenizer

    @property
    def separator(self) -> int:
        return self._tokenizer.separator

    @cached_property
    def digest(self) -> str:
        """sha256 of the texts and of the tokenizer that cuts them."""
        digest = hashlib.sha256(self.tokenizer.to_str().encode())
        for domain, rows in self.texts.items():
            for text in rows:
                digest.update(f"{domain} {hashlib.sha256(text.encode()).hexdigest()}\n".encode())
        return digest.hexdigest()

    def documents(self, domain: str, split: str = "validation") -> Documents:
        """Raises UserError for an unknown domain."""
        if domain not in self.texts:
            raise UserError(f"There is no domain '{domain}' among the texts. Domains: {', '.join(self.domains)}.")
        if domain not in self._documents:
            encoded = self._tokenizer.batch(self.texts[domain])
            rows = [np.array([self.separator, *ids], dtype=np.int64) for ids in encoded]
            self._documents[domain] = Documents(rows)
        return self._documents[domain]


def own_texts(path: str, say: Callable[[str], None] = lambda line: None) -> dict[str, list[str]]:
    """The documents in a file or folder of text, JSON lines or parquet, as one domain. Raises UserError as `read_documents` does."""
    texts, left_out = read_documents(f"text={path}", path)
    if left_out:
        say(f"text={path}: {left_out}")
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UserError(f"text={path}: there is no text in it")
    return {OWN: texts}


def builtin_texts(held_out: Sequence[str], packages: Sequence[str], say: Callable[[str], None]) -> dict[str, list[str]]:
    """Held-out documents of the built-in corpus, by domain: the same as in a store of it, whatever else that trains on."""
    say("reading the built-in corpus")
    corpus = CorpusConfig(packages=[name for name in packages if name in held_out], validation=list(held_out))
    found = build_corpus(corpus, lambda message, done: None)
    return {domain: [document.text for document in rows] for (domain, split), rows in found.items() if split == "validation"}
