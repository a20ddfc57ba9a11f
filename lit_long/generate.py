"""Continue texts, or answer as a chat model.

    python -m lit_long.generate model=smollm2-135m prompt="The capital of France is"
    … model.init=NAME        pretrained weights: a folder, a .gguf file, ORG/NAME of the Hugging Face hub
    … stage=FOLDER           a training stage of this suite (runs/stages/train-…)
    … prompt=- · prompt_file=FILE · prompts=[one,two]       standard input, a file (rows of .jsonl are a prompt each), several texts
    … chat=true system="…"   the prompt is a user's message, put into the model's chat template
    … temperature=0.8 top_p=0.95 seed=0                     sample; temperature=0, the default, takes the likeliest tokens
    … stop=["\\n\\n"]          end before any of these strings
    … context=32k position=yarn position.attention=1        another encoder for a longer context (default: the model's own)
    … layers=swan layers.groups.local.window=512            layers that differ (configs/layers/; default: the model's own)
    … dtype=auto|float32|bfloat16  device=auto|cpu|cuda     auto: bfloat16 on a GPU, float32 without one
    … prefill_chunk=2k       tokens whose widest activations may exist at once while a prompt is read
    … max_new_tokens=64      default: 256, or what the context has left

The text alone goes to standard output, as it comes; several texts one after another, a blank line between. ``prompt`` and ``system``
are taken literally. Exit codes: 0 done, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from lit_long.config import UserError, typed
from lit_long.config.compose import parse_model_words
from lit_long.config.ranges import Count, FilePath, NotNegative, PositiveShare, Seed
from lit_long.config.text import EscapedText
from lit_long.terminal import answer, run_command

LITERAL = ("prompt=", "system=")
NEW_TOKENS = 256


@dataclass
class GenerateConfig:
    prompt: str | None = None
    prompt_file: FilePath = ""
    prompts: list[str] = field(default_factory=list)
    chat: bool = False
    system: str = ""
    max_new_tokens: Count | None = None
    temperature: NotNegative = 0.0
    top_p: PositiveShare = 1.0
    seed: Seed = 0
    stop: list[EscapedText] = field(default_factory=list)
    prefill_chunk: Count = 2048
    dtype: str = "auto"
    device: str = "auto"
    stage: FilePath = ""
    context: Count | None = None
    model: dict[str, Any] = field(default_factory=dict)
    position: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=dict)


def main(argv: list[str]) -> int:
    return answer(argv, __doc__, run)


def run(argv: list[str]) -> None:
    """Generate and print."""
    words = parse_model_words([word for word in argv if not word.startswith(LITERAL)], GenerateConfig)
    words |= dict(word.split("=", 1) for word in argv if word.startswith(LITERAL))
    generate_from(typed(GenerateConfig, words, "command line"), words)


def generate_from(config: GenerateConfig, words: dict[str, Any]) -> None:
    """``words`` are the command line's, which name the model."""
    from lit_long.generation import Sampler, generate_text, prepack  # which import torch: a mistyped key need not wait for it
    from lit_long.stages.model import load_model

    say = partial(print, file=sys.stderr, flush=True)
    prompts = read_prompts(config.prompt, config.prompt_file, config.prompts, partial(prompts_in, say=say))
    if config.system and not config.chat:
        raise UserError("command line: system=… is for chat=true")
    sampler = Sampler(config.temperature, config.top_p, config.seed)
    model, tokenizer, settings = load_model(words, config.stage, config.device, config.dtype, say)
    if config.chat:
        system = [{"role": "system", "content": config.system}] if config.system else []
        prompts = [tokenizer.chat([*system, {"role": "user", "content": prompt}]) for prompt in prompts]
    longest = max(len(tokenizer.encode(prompt)) for prompt in prompts)
    new = min(NEW_TOKENS, settings.context - longest) if config.max_new_tokens is None else config.max_new_tokens
    if longest + max(new, 1) > settings.context:
        raise UserError(
            f"prompt ({longest:,} tokens) and max_new_tokens={max(new, 1):,} exceed context={settings.context:,}; shorten them, or set "
            f"a longer context and an encoder that holds it, such as context=32k position=yarn"
        )
    prepack(model, len(prompts))
    ways = dict(sampler=sampler, stop=config.stop, show=InOrder(sys.stdout, len(prompts)), chunk=config.prefill_chunk)
    generate_text(model, tokenizer, prompts, new, **ways)


def read_prompts(prompt: str | None, prompt_file: str, prompts: list[str], read_file: Callable[[str], list[str]]) -> list[str]:
    """The prompts that one of the three keys gives; ``prompt=-`` is standard input, ``read_file`` gets what ``prompt_file`` holds.

    Raises:
        UserError: none or several of the keys are given, or what they name cannot be read.
    """
    given = [
        key for key, is_given in (("prompt", prompt is not None), ("prompt_file", prompt_file), ("prompts", prompts)) if is_given
    ]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise UserError(
            f"command line: give one of prompt=TEXT (- for standard input), prompt_file=FILE, prompts=[…]; there is {found}"
        )
    try:
        if prompt_file:
            return read_file(prompt_file)
        return [sys.stdin.read()] if prompt == "-" else [prompt] if prompt is not None else prompts
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{given[0]}={prompt_file or prompt}: cannot be read as UTF-8 text: {error}") from None


def prompts_in(path: str, say: Callable[[str], None]) -> list[str]:
    """The prompts of a file: a text is one, of JSON lines, parquet or a folder each document is one. A pipe holds one, too."""
    from lit_long.data.paths import kind_by_name
    from lit_long.data.sources import read_documents

    place = Path(path).expanduser()
    if place.exists() and not place.is_file() and not place.is_dir():
        return [place.read_text(encoding="utf-8")]
    # A prompt may well be JSON, where a training text is not.
    texts, left_out = read_documents(f"prompt_file={path}", path, "text" if kind_by_name(place.name) == "text" else "auto")
    if left_out:
        say(f"prompt_file={path}: {left_out}")
    if not texts:
        raise UserError(f"prompt_file={path}: there is no prompt in it")
    return [text.replace("\r\n", "\n").replace("\r", "\n") for text in texts]


class InOrder:
    """Writes texts that grow at the same time one after another, a blank line between them: the first one as it grows, the others as
    soon as those before are complete."""

    def __init__(self, stream: TextIO, texts: int) -> None:
        self.stream = stream
        self.waiting, self.complete = [""] * texts, [False] * texts
        self.current = 0

    def __call__(self, text: int, piece: str, last: bool) -> None:
        self.waiting[text] += piece
        self.complete[text] = last
        while self.current < len(self.waiting):
            self.stream.write(self.waiting[self.current])
            self.waiting[self.current] = ""
            if not self.complete[self.current]:
                break
            self.current += 1
            self.stream.write("\n\n" if self.current < len(self.waiting) else "\n")
        self.stream.flush()


if __name__ == "__main__":
    run_command(main)
