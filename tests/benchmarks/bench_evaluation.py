"""Evaluation on the CPU: log-likelihoods against lm-eval's HFLM, and the needle grid against transformers' `generate`.

SmolLM2-135M's shape with random weights, the same in both, fp32, the same batch size. Log-likelihoods: samples (questions) per second of
4 options with endings of their own (as HellaSwag), and of 4 letters after 5 examples (as MMLU). Needle: prompts per second of the grid,
32 tokens written after each; of transformers, whose time does not depend on the depth, two depths a length, counted for all. The whole grid,
8 lengths to 8k × 10 depths, takes twenty minutes: `full` measures it; otherwise it is reduced, which its row says.

make bench, or python -m tests.benchmarks.bench_evaluation FILE.json [full]
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.evaluation.in_memory_corpus import InMemoryCorpus
from lit_long.evaluation.lm_eval import Harness
from lit_long.evaluation.needle import NEW, needle_prompt
from lit_long.generation import prepack
from lit_long.pretrained import open_pretrained
from lit_long.processor import describe_machine
from tests.benchmarks.bench_generation import SHAPE, their_tokens, theirs
from tests.evaluation.models import bytes_tokenizer
from tests.pretrained.llamas import read

BATCH, ROUNDS, QUESTIONS = 8, 2, 8
LIKELIHOOD_TARGET, NEEDLE_TARGET = 1.2, 1.5
REDUCED, FULL = ([512 * k for k in range(1, 5)], 10), ([1024 * k for k in range(1, 9)], 10)
Row = dict[str, Any]


def model_folder(folder: Path) -> Path:
    """Random weights of the shape, with bytes for tokens: what is measured does not depend on the text."""
    theirs(torch.float32).save_pretrained(folder)
    bytes_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}')
    return folder


def row(name: str, peer: str, mine: float, peers: float, target: float, unit: str) -> Row:
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "lm_eval": lm_eval.__version__}
    found = {"name": name, "peer": peer, "ours": mine, "theirs": peers, "ratio": mine / peers, "target": target, "unit": unit}
    found |= {"threads": torch.get_num_threads(), "machine": describe_machine(torch.device("cpu")), "versions": versions}
    verdict = "" if mine / peers >= target else "   BELOW TARGET"
    print(f"{name}: {mine:,.2f} {unit}, {peer} {peers:,.2f}, {mine / peers:.2f} × (target {target:g}){verdict}", flush=True)
    return found


def best(steps: list[Callable[[], Any]], rounds: int) -> list[float]:
    """The least seconds of each, in turn so that both meet the same machine."""
    seconds = [float("inf")] * len(steps)
    for _ in range(rounds):
        for who, step in enumerate(steps):
            start = time.perf_counter()
            step()
            seconds[who] = min(seconds[who], time.perf_counter() - start)
    return seconds


def questions(kind: str, count: int) -> list[Instance]:
    """4 requests a question. Tokens are characters."""
    draw = random.Random(0)

    def words(length: int) -> str:
        return "".join(draw.choices("abcdefgh ", k=length))

    examples = words(500)
    pairs = []
    for _ in range(count):
        if kind == "endings":
            context = words(draw.randint(60, 120))
            pairs += [(context, f" {words(draw.randint(15, 40))}") for _ in range(4)]
        else:
            context = f"{examples}{words(draw.randint(60, 120))}:"
            pairs += [(context, f" {letter}"[1:]) for letter in "ABCD"]
    return [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]


def likelihood_rows(folder: Path, count: int = QUESTIONS, rounds: int = ROUNDS) -> list[Row]:
    peer = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=BATCH)
    pretrained = open_pretrained(str(folder))
    model = read(pretrained)
    prepack(model, BATCH)
    rows = []
    for kind, words in (("endings", "4 endings, as HellaSwag"), ("letters", "4 letters after 5 examples, as MMLU")):
        asked = questions(kind, count)
        longest = max(len(context) + len(ending) for context, ending in (each.args for each in asked))
        ours = Harness(EvaluatedModel(model, pretrained.tokenizer(), SHAPE.context, BATCH * longest))
        expected, found = (lm.loglikelihood(asked[:8], disable_tqdm=True) for lm in (peer, ours))
        if any(abs(a[0] - b[0]) > 1e-3 for a, b in zip(expected, found, strict=True)):
            raise RuntimeError("the two give different likelihoods: they do not do the same work")
        steps = [lambda lm=lm, asked=asked: lm.loglikelihood(asked, disable_tqdm=True) for lm in (ours, peer)]
        mine, peers = (count / seconds for seconds in best(steps, rounds))
        rows.append(row(f"log-likelihood, {words}, batch {BATCH}", "lm-eval HFLM", mine, peers, LIKELIHOOD_TARGET, "questions/s"))
    return rows


def needle_row(folder: Path, lengths: list[int], depths: int) -> Row:
    """Every length once with each; a batch of one prompt, as long ones are."""
    pretrained = open_pretrained(str(folder))
    model = read(pretrained)
    prepack(model, 1)
    evaluated = EvaluatedModel(model, pretrained.tokenizer(), SHAPE.context, 1)
    peer = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sentences = [f"Sentence {number} is about {number * number % 97} apples.\n" for number in range(1000)]
    pages = InMemoryCorpus(evaluated.tokenizer, {"text": ["".join(sentences)]})
    grid = {
        (length, depth): needle_prompt(evaluated, pages, "text", length - NEW, depth / max(1, depths - 1), 0, 0)
        for length in lengths
        for depth in range(depths)
    }
    some = [grid[length, depth] for length in lengths for depth in sorted({0, depths - 1})]
    seconds = best(
        [
            lambda: list(evaluated.write_sharing(list(grid.values()), NEW)),
            lambda: [their_tokens(peer, torch.tensor([prompt]), NEW) for prompt in some],
        ],
        1,
    )
    mine, peers = (len(prompts) / each for prompts, each in zip((grid, some), seconds, strict=True))
    reduced = "" if (lengths, depths) == FULL else " (reduced from 8 to 8,192 × 10)"
    name = f"needle grid, {len(lengths)} lengths to {max(lengths):,} × {depths} depths{reduced}, fp32"
    return row(name, "transformers generate", mine, peers, NEEDLE_TARGET, "prompts/s")


def measure(grid: tuple[list[int], int]) -> list[Row]:
    with tempfile.TemporaryDirectory() as place:
        folder = model_folder(Path(place) / "model")
        return [*likelihood_rows(folder), needle_row(folder, *grid)]


def test_evaluation():
    print()
    measure(REDUCED)


def main(argv: list[str]) -> None:
    rows = measure(FULL if "full" in argv else REDUCED)
    if files := [word for word in argv if word != "full"]:
        Path(files[0]).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
