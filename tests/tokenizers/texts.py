"""Texts that are hard to tokenize, a conversation, and small tokenizers of both families."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

TEXTS = [
    "Hello world! It's 12345 o'clock; we'll see, they've 3.14159 apples & 1,000,000 pears.",
    "def f(x):\n    return [i ** 2 for i in range(10)]  # squares\n\n\n\tif x != 0:\r\n\t\tprint(f'{x:>8.3f}')",
    "Größe, naïve café; 你好，世界。 Привет! मैं १२३ 🙂👩‍👩‍👧 ﬁ",
    "  two spaces first, and last  ",
    "\n\n\nlines\n\n",
    "a",
    "",
]
CHAT = [{"role": "user", "content": "Why is the sky blue?"}, {"role": "assistant", "content": "Rayleigh."}]
CORPUS = [text for text in TEXTS if text] * 3 + ["the other there then these those, 10 20 30 1999 2001 " * 5]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
# The original tokenizers' own ways to cut text into words.
CUTS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]),
    "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTE_LEVEL]),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"), BYTE_LEVEL]),
}


def trained(pre, special=("<|endoftext|>",)):
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer, tokenizer.decoder = CUTS[pre], decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


PIECES = ["▁t", "he", "▁the", "in", "er", "an", "▁a", "re", "on", "▁s", "▁there", "▁▁", "▁▁▁▁", "▁▁▁", "ere"]
CHARACTERS = "▁etaoinsrhldcumfpgwybvk"


def spm_pieces():
    """(text, score, kind) as in Llama 2's tokenizer.model: special tokens, bytes, words, characters."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)] + [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    pieces += [(piece, -float(rank), 1) for rank, piece in enumerate([*PIECES, *CHARACTERS])]
    return [*pieces, ("<|chat|>", 0.0, 4)]


# What sentencepiece 0.2.3 makes of texts with these pieces, after ▁: spaces at the start stay, unknown characters become bytes.
SENTENCEPIECE = {
    "the there": [261, 269],
    "  there in an   ere": [270, 269, 274, 262, 274, 264, 272, 273],
    "here": [274, 260, 266],
    " a": [274, 265],
    "    the": [271, 261],
    "\tt\nhe": [274, 12, 276, 13, 260],
    "therethere ther": [269, 276, 260, 266, 261, 282],
    "Zürich, 你": [274, 93, 198, 191, 282, 279, 286, 283, 47, 274, 231, 192, 163],
}
