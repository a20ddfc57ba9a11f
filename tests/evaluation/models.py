"""Small random models to be measured, with real tokenizers."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lit_long.config import ModelConfig
from lit_long.data.token_store import Store
from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.tokenizers.tokenizer import ModelTokenizer
from tests.generation.llamas import small
from tests.pretrained.llamas import random_llama, save

SHAPE = ModelConfig(1024, 64, 2, 4, 2, 16, 96, 1e-5, True, 2048)


def words_in(store: Store) -> ModelTokenizer:
    ends = store.separator
    return ModelTokenizer(store.tokenizer, bos=ends, eos=(ends,), add_bos=True, separator=ends, where="store")


def evaluated_of(store: Store, context: int = 2048, batch_tokens: int = 1024) -> EvaluatedModel:
    """A random model with the store's tokenizer."""
    return EvaluatedModel(small(SHAPE), words_in(store), context, batch_tokens)


def bytes_tokenizer() -> Tokenizer:
    """Its tokens are bytes, and <end>."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


def bytes_folder(folder: Path, context: int = 512) -> Path:
    """A Hugging Face folder of a random Llama whose tokens are bytes."""
    save(random_llama(vocab=257, context=context), folder)
    bytes_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}')
    return folder
