"""What is written and drawn stays what it was, to the last bit: digests of a small store and of its streams of batches, noted at 0.2 (bc74330).

A change here means that finished runs can no longer be continued or compared: raise the version of the kind in stages/identity.py, and
note the new digests, only if that is what you want.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import replace

import numpy as np
import pytest

from lit_long.config import CorpusConfig, InstructConfig, SamplingConfig, SourceConfig
from lit_long.data.curriculum import Phase
from lit_long.data.held_out import held_out_sequences
from lit_long.data.mixture import Recipe, Updates, make_mixtures
from lit_long.data.prepare import prepare
from lit_long.data.synthetic import passkey_examples, retrieval_examples
from lit_long.data.token_store import Store, open_store

pytestmark = pytest.mark.skipif(
    importlib.metadata.version("tokenizers") != "0.23.3", reason="the tokenizer of another version may be another one"
)

WORDS = [
    "river",
    "stone",
    "market",
    "letter",
    "garden",
    "winter",
    "bridge",
    "captain",
    "silver",
    "window",
    "music",
    "paper",
    "forest",
    "engine",
    "island",
    "summer",
    "mirror",
    "teacher",
    "castle",
    "harbour",
    "signal",
    "basket",
    "desert",
    "lantern",
    "village",
    "thunder",
    "pocket",
    "saddle",
    "candle",
    "orchard",
]
STORE = "86c99e21"  # the digests' first digits
STREAMS = {  # of the only rank, and of each of two
    "concat": ["85d2916a", "a373e141", "ec7412be"],
    "best_fit": ["8bcad287", "7990bd52", "296933f4"],
    "single": ["957b73e9", "dea2c58f", "d407c949"],
    "sampling": ["7f56521a", "378361c2", "e4df08d1"],
    "single, sampling": ["eba4196e", "b0a9d653", "3b4cb093"],
    "unmasked": ["a1be982f", "89d8c422", "095b7812"],
    "chat, whole": ["b6221c62", "3c0be297", "cc919545"],
    "chat, single": ["f623e9de", "8fd3494d", "3211c737"],
    "repeats": ["d302e5ee", "dfec6abb", "7a9bf8be"],
}
HELD_OUT, RETRIEVAL, PASSKEY = "1accb9c7", "8513a86c", "2d588c3a"


def sentence(number: int) -> str:
    chosen = [WORDS[(number * 7 + place * (3 + number % 5)) % len(WORDS)] for place in range(7 + number % 6)]
    return f"{chosen[0].capitalize()} {number} {' '.join(chosen[1:])}."


def text(number: int, sentences: int) -> str:
    found = [sentence(number * 131 + place) for place in range(sentences)]
    return "\n\n".join(" ".join(found[at : at + 4]) for at in range(0, len(found), 4))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Store:
    place = tmp_path_factory.mktemp("pinned")
    docs, code = place / "docs.jsonl", place / "code"
    rows = [{"text": text(number, 4 + number * 11 % 70), "set": "ab"[number % 2]} for number in range(120)]
    rows += rows[:5]  # duplicates
    docs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code.mkdir()
    for number in range(40):
        (code / f"{number:02}.py").write_text(
            f"def f{number}(x):\n    return {' + '.join(WORDS[: 1 + number % 30])}\n" * (1 + number % 9)
        )
    turns = [
        {
            "messages": [
                {"role": role, "content": text(900 + number + turn, 1 + number % 5)}
                for turn, role in enumerate(("user", "assistant") * 2)
            ]
        }
        for number in range(30)
    ]
    (place / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turns))
    sources = {
        "docs": SourceConfig(path=str(docs), validation_share=0.1),
        "code": SourceConfig(path=str(code), validation_share=0.1, keep=0.9, min_characters=40),
        "chat": SourceConfig(
            path=str(place / "chat.jsonl"), validation_share=0.1, instruct=InstructConfig(schema="messages", prompt_weight=0.1)
        ),
    }
    prepare(CorpusConfig(vocab_size=500), place / "store", sources=sources, builtin=False, processes=1)
    return open_store(place / "store")


def digest(*arrays: np.ndarray) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:8]


def stream(store: Store, recipe: Recipe, rank: int, world: int) -> str:
    """Digest of all fields of the updates 0 to 11, of two phases."""
    phases = [Phase(0, 6, 128), Phase(6, 12, 256, {"docs": 0.5, "retrieval": 0.3, "copying": 0.2})]
    found = make_mixtures(store, recipe, phases, 1024)
    names = sorted({name for mixture in found for name in mixture.names})
    updates = Updates(found, phases, names, 1024, rank, world)
    fields = [field for step in range(12) for field in updates[step] if hasattr(field, "numpy")]
    return digest(*(field.numpy() for field in fields))


RECIPES = {
    packing: Recipe({"docs": 0.4, "code": 0.2, "retrieval": 0.2, "copying": 0.2}, seed=3, packing=packing)
    for packing in ("concat", "best_fit", "single")
}
RECIPES["sampling"] = replace(
    RECIPES["concat"], sampling={"docs": SamplingConfig(long_tokens=300, long_share=0.8, min_tokens=30)}
)
RECIPES["single, sampling"] = replace(RECIPES["sampling"], packing="single")
RECIPES["unmasked"] = replace(RECIPES["best_fit"], mask_documents=False, seed=4)
for way in ("whole", "single"):
    settings = InstructConfig(schema="messages", packing=way, prompt_weight=0.1)
    RECIPES[f"chat, {way}"] = Recipe({"docs": 0.4, "chat": 0.6}, seed=5, instruct={"chat": settings})
RECIPES["repeats"] = Recipe({}, seed=6, repeats={"docs": 1.0, "code": 2.5})


def test_the_store(small):
    assert small.manifest["digest"][:8] == STORE


@pytest.mark.parametrize("name", RECIPES)
def test_the_stream_of_batches(small, name):
    ranks = ((0, 1), (0, 2), (1, 2))
    assert [stream(small, RECIPES[name], *rank) for rank in ranks] == STREAMS[name]


def test_held_out_sequences(small):
    batches = [held_out_sequences(small, domain, 128, 4, 256) for domain in ("docs", "chat")]
    assert digest(*(field.numpy() for batch in batches for field in batch[:4])) == HELD_OUT


def test_examples_of_retrieval(small):
    assert digest(*(example.tokens for example in retrieval_examples(small, 160, 5, max_length=192))) == RETRIEVAL
    assert digest(*(example.tokens for example in passkey_examples(small, 160, 5, max_length=192))) == PASSKEY
