"""Retrieval from long texts: FIRST-SENTENCE-RETRIEVAL (Xiong et al. 2023, §4.1), PASSKEY (Mohtashami and Jaggi 2023) and LongChat-Lines.

A prompt is read once. Then the model is scored on the right answer, teacher-forced (each token is predicted with the true ones before
it: token accuracy and nats), and goes back to write an answer of its own, token by token the likeliest, whose ROUGE-L is the paper's
measure. A passkey is found when all its digits are the likeliest tokens, which is when greedy decoding writes it.

An evaluate stage (`retrieval`) and the tasks of `python -m lit_long.evaluate` ask the same examples and answer them with the same code.
Stages pool tokens: their accuracy is Σ hits / Σ tokens, that of the task ``first_sentence`` the mean over examples.

Of PASSKEY also k_max, the effective window of Position Interpolation (Chen et al. 2023, §3.3): the largest distance between the key and
the end of the prompt such that at it, and at all smaller ones, at least a fifth of the trials find the key. PI takes 32 distances and 10 trials at the window to be tested;
here the distances are those of the examples at the longest length, and each trial (a seed) has other texts and keys.

LongChat-Lines (LongEval's lines, extended by Giraffe to 25k tokens): a list of named registers, and the question for one of them.

    line brave-otter: REGISTER_CONTENT is <40213>

The answer counts when the first integer in it is the register's value (Giraffe's rule). The wording around the lines is ours: a base
model continues the sentence that asks. A prompt is a function of (tokenizer, length, seed, index).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_long.config import EvaluationConfig, UserError
from lit_long.data.sampling import permutation, random_words
from lit_long.data.synthetic import DOMAIN, PASSKEY, RetrievalExample, passkey_examples, retrieval_examples
from lit_long.data.token_store import Store
from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.evaluation.in_memory_corpus import InMemoryCorpus
from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.samples import Key
from lit_long.evaluation.statistics import mean, ratio, share
from lit_long.evaluation.task import Sample, Task, by
from lit_long.generation.decode import Sequences
from lit_long.model.llama import Llama

Advance = Callable[[int], None]
LEAST = 0.2  # of the trials that must find the key


@dataclass(frozen=True)
class Answered:
    """How one example went: nats and hits [tokens] of the scored answer, and the ids that the model wrote."""

    nats: Tensor
    hits: Tensor
    written: list[int]


def retrieval(model: Llama, store: Store, evaluation: EvaluationConfig, advance: Advance) -> list[Measurement]:
    """Of an evaluate stage: both tasks, at every length the evaluation asks for; the same texts at each."""
    found: list[Measurement] = []
    domain, count = evaluation.retrieval_domain or DOMAIN, evaluation.retrieval_examples
    sentences = FirstSentence(store, "", domain, evaluation.retrieval_lengths, count, skip=evaluation.skip)
    for length in evaluation.retrieval_lengths:
        examples = sentences.examples(length)
        answers = answer(model, examples, evaluation.batch_tokens, advance)
        accuracy, nats, rouge = pooled(store, domain, length, examples, answers)
        found += [
            replace(accuracy, metric="retrieval_accuracy"),
            replace(nats, metric="retrieval_nats"),
            replace(rouge, metric="retrieval_rouge_l"),
        ]
        if evaluation.retrieval_control and length == min(evaluation.retrieval_lengths) and len(examples) > 1:
            answers = answer(model, control_examples(examples), evaluation.batch_tokens, advance)
            accuracy, _, rouge = pooled(store, domain, length, examples, answers)
            found += [replace(accuracy, metric="retrieval_control"), replace(rouge, metric="retrieval_control_rouge_l")]
    keys = Passkey(store, "", domain, evaluation.passkey_lengths, count, skip=evaluation.skip)
    for length in evaluation.passkey_lengths:
        answers = answer(model, keys.examples(length), evaluation.batch_tokens, advance, write=False)
        hits = share([bool(each.hits.all()) for each in answers])
        tokens = sum(len(each.hits) for each in answers)
        found.append(Measurement("passkey_accuracy", domain, length, **hits, unit="examples", tokens=tokens))
    return found


def pooled(
    store: Store, domain: str, length: int, examples: list[RetrievalExample], answers: list[Answered]
) -> tuple[Measurement, Measurement, Measurement]:
    """Token accuracy and nats over the tokens of all answers, and the mean ROUGE-L; the intervals are over examples."""
    tokens = [len(each.hits) for each in answers]
    accuracy = ratio([int(each.hits.sum()) for each in answers], tokens)
    nats = ratio([float(each.nats.double().sum()) for each in answers], tokens)
    nats["value"] = float(torch.cat([each.nats for each in answers]).double().mean())  # summed at once, which rounds otherwise
    written = [store.tokenizer.decode(each.written) for each in answers]
    rouge = mean([rouge_l([text], [example.text]) for text, example in zip(written, examples, strict=True)])
    rouge["value"] = rouge_l(written, [example.text for example in examples])
    about = {"unit": "examples", "tokens": sum(tokens)}
    return tuple(
        Measurement(name, domain, length, **each, **about)
        for name, each in (("accuracy", accuracy), ("nats", nats), ("rouge_l", rouge))
    )


def control_examples(examples: list[RetrievalExample]) -> list[RetrievalExample]:
    """Each example's answer after the next one's text and question: the words of the answer are as easy to guess, and nothing tells which they are."""
    texts = [example.tokens[: example.answer_start] for example in (*examples[1:], examples[0])]
    return [
        RetrievalExample(
            tokens=np.concatenate([text, example.tokens[example.answer_start :]]),
            answer_start=len(text),
            answer_stop=len(text) + example.answer_stop - example.answer_start,
            text=example.text,
        )
        for text, example in zip(texts, examples, strict=True)
    ]


def answer(
    model: Llama, examples: list[RetrievalExample], batch_tokens: int, advance: Advance, write: bool = True
) -> list[Answered]:
    """Every example's answer, ``batch_tokens`` tokens of examples at a time; ``write``: one of the model's own, too."""
    answers: list[Answered] = []
    at_once = max(1, batch_tokens // len(examples[0].tokens))
    for start in range(0, len(examples), at_once):
        group = examples[start : start + at_once]
        answers += answer_group(model, group, write)
        advance(sum(len(example.tokens) for example in group))
    return answers


@torch.inference_mode()
def answer_group(model: Llama, examples: list[RetrievalExample], write: bool) -> list[Answered]:
    prompts = [example.tokens[: example.answer_start].tolist() for example in examples]
    right = [example.tokens[example.answer_start :].tolist() for example in examples]
    scored = [example.answer_stop - example.answer_start for example in examples]
    longest = max(map(len, right))
    sequences = Sequences(model, prompts, longest, forgets=False)
    first_BV = logits_BV = sequences.read()
    nats, hits = [], []
    for index in range(max(scored)):
        target_B = torch.tensor([answer[min(index, len(answer) - 1)] for answer in right], device=logits_BV.device)
        nats.append(F.cross_entropy(logits_BV.float(), target_B, reduction="none"))
        hits.append(logits_BV.argmax(-1) == target_B)
        if index + 1 < max(scored):
            logits_BV = sequences.step(target_B)
    written: list[list[int]] = [[] for _ in examples]
    if write:
        sequences.rewind(max(scored) - 1)
        logits_BV = first_BV
        for index in range(longest):
            chosen_B = logits_BV.argmax(-1)
            for own, token in zip(written, chosen_B.tolist(), strict=True):
                own.append(token)
            if index + 1 < longest:
                logits_BV = sequences.step(chosen_B)
    nats_TB, hits_TB = torch.stack(nats).cpu(), torch.stack(hits).cpu()
    return [
        Answered(nats_TB[:count, row], hits_TB[:count, row], own[: len(right[row])])
        for row, (count, own) in enumerate(zip(scored, written, strict=True))
    ]


def rouge_l(written: list[str], sentences: list[str]) -> float:
    """Mean ROUGE-L (F-measure, 0 to 1) of what was written, up to its first line's end, against the sentences asked for."""
    from torchmetrics.functional.text import rouge_score

    lines = [text.strip().partition("\n")[0] for text in written]
    return float(rouge_score(lines, sentences, rouge_keys="rougeL")["rougeL_fmeasure"])


@dataclass
class FirstSentence(Task):
    """``count`` examples at every length, about the same texts."""

    name: ClassVar[str] = "first_sentence"
    prompt: ClassVar[str] = "lit-long/1"  # the paper does not give its own
    writes: ClassVar[bool] = True  # an answer of the model's own

    texts: InMemoryCorpus | Store
    data: str
    domain: str
    lengths: list[int]
    count: int = 4
    seed: int = 0
    skip: int = 0  # examples to leave out first
    found: dict[Any, list[RetrievalExample]] = field(default_factory=dict, repr=False)

    def settings(self) -> dict[str, Any]:
        return {"data": self.data, "longest": max(self.lengths), "count": self.count, "seed": self.seed}

    def examples(self, length: int) -> list[RetrievalExample]:
        """All of one length, made once."""
        if length not in self.found:
            self.found[length] = self.make(length)
        return self.found[length]

    def make(self, length: int) -> list[RetrievalExample]:
        longest = max(self.lengths)
        return retrieval_examples(
            self.texts, length, self.count, max_length=longest, seed=self.seed, domain=self.domain, skip=self.skip
        )

    def keys(self) -> list[Key]:
        return [Key(self.domain, length, index) for length in self.lengths for index in range(len(self.examples(length)))]

    def measure(self, evaluated: EvaluatedModel, keys: list[Key]) -> Iterator[Sample]:
        examples = self.examples(keys[0].length)
        at_once = max(1, evaluated.batch_tokens // keys[0].length)
        for start in range(0, len(keys), at_once):
            group = keys[start : start + at_once]
            asked = [examples[key.index] for key in group]
            answers = answer(evaluated.model, asked, 10**9, lambda tokens: None, write=self.writes)
            yield from ((key, self.record(evaluated, key, *each)) for key, *each in zip(group, asked, answers, strict=True))

    def record(self, evaluated: EvaluatedModel, key: Key, example: RetrievalExample, found: Answered) -> dict[str, Any]:
        """What is kept of one answer."""
        written = evaluated.tokenizer.decode(found.written)
        return {
            "reference": example.text,
            "written": written,
            "rouge_l": rouge_l([written], [example.text]),
            "hits": int(found.hits.sum()),
            "nats": float(found.nats.double().sum()),
            "tokens": len(found.hits),
        }

    def scores(self, samples: list[dict[str, Any]]) -> list[Measurement]:
        rows = []
        for (domain, length), group in by(samples, "domain", "length"):
            about = {"unit": "examples", "tokens": sum(each["tokens"] for each in group)}
            accuracy = mean([each["hits"] / each["tokens"] for each in group])
            rows.append(Measurement("rouge_l", domain, length, **mean([each["rouge_l"] for each in group]), **about))
            rows.append(Measurement("token_accuracy", domain, length, **accuracy, **about))
        return rows


@dataclass
class Passkey(FirstSentence):
    """``count`` depths in each of ``trials``, of which each has a seed of its own."""

    name: ClassVar[str] = "passkey"
    prompt: ClassVar[str] = "lit-long/1"
    writes: ClassVar[bool] = False

    trials: int = 1

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"trials": self.trials}

    def make(self, length: int) -> list[RetrievalExample]:
        longest = max(self.lengths)
        return [
            example
            for trial in range(self.trials)
            for example in passkey_examples(
                self.texts, length, self.count, max_length=longest, seed=self.seed + trial, domain=self.domain, skip=self.skip
            )
        ]

    def record(self, evaluated: EvaluatedModel, key: Key, example: RetrievalExample, found: Answered) -> dict[str, Any]:
        return {
            "reference": example.text,
            "distance": distance(example, evaluated.encode(PASSKEY.format(key=example.text))),
            "place": key.index % (len(self.examples(key.length)) // self.trials),
            "hits": int(found.hits.sum()),
            "tokens": len(found.hits),
            "found": bool(found.hits.all()),
        }

    def scores(self, samples: list[dict[str, Any]]) -> list[Measurement]:
        rows = []
        for (domain, length), group in by(samples, "domain", "length"):
            found = share([each["found"] for each in group])
            rows.append(Measurement("accuracy", domain, length, **found, unit="examples"))
        longest = [each for each in samples if each["length"] == max(self.lengths)]
        trials = [
            (round(np.mean([each["distance"] for each in g])), [each["found"] for each in g]) for _, g in by(longest, "place")
        ]
        most = max(self.lengths)
        return [*rows, Measurement("k_max", self.domain, most, k_max(trials), n=len(longest), unit="examples")]


def distance(example: RetrievalExample, needle: list[int]) -> int:
    """Tokens from the beginning of the needle to the end of the prompt."""
    prompt = example.tokens[: example.answer_start].tolist()
    starts = (place for place in range(len(prompt)) if prompt[place : place + len(needle)] == needle)
    return len(prompt) - next(starts)


def k_max(trials: list[tuple[int, list[bool]]]) -> int:
    """The largest distance, in tokens, such that at it and at all smaller ones at least 20 % of the trials found the key; 0 if there is none."""
    reached = 0
    for distance, found in sorted(trials):
        if sum(found) < LEAST * len(found):
            break
        reached = distance
    return reached


ADJECTIVES = """
able bold brave brisk calm clear clever cold cosy crisp deep dry eager early faint fair fast fine firm fond fresh glad grand
great green happy hardy keen kind large late light loud lucky mild neat nimble noble odd old pale plain proud quick quiet
rapid rare ready rich rough round sharp short shy silent slow small smart soft solid still strong sunny sweet swift tall tame
tidy tiny warm wide wild wise
"""
NOUNS = """
acorn anchor apple arrow badger barrel basket beacon bell birch boat bridge brook cabin candle canyon castle cedar cliff
cloud comet copper coral crane creek crow dune eagle ember falcon feather fern field finch flint forest fox garden glacier
grove harbour harvest hawk heron hill island ivory jacket kettle lagoon lantern lark maple marble meadow mill moon moss oak
orchard otter owl path pebble pine plum pond quill raven reef ridge river robin rose saddle sail shell sparrow spring stone
storm swan thistle timber tower valley violet walnut willow wren
"""
LINES_OPENING = "Below is a record of lines. Each line has a name, and holds a number, its REGISTER_CONTENT.\n\n"
LINE = "line {name}: REGISTER_CONTENT is <{value}>\n"
LINE_QUESTION = "\nThe record is over. The REGISTER_CONTENT in line {name} is <"
ANSWER_TOKENS = 35  # of a line's: Giraffe's
LEAST_TOKENS = 8  # of a line, in any vocabulary: five digits, four words and their marks


@dataclass
class Lines(Task):
    """``count`` records at every length."""

    name: ClassVar[str] = "longchat_lines"
    prompt: ClassVar[str] = "lit-long/1"

    lengths: list[int]
    count: int = 4
    seed: int = 0

    def settings(self) -> dict[str, Any]:
        return {"data": "generated", "seed": self.seed}

    def keys(self) -> list[Key]:
        return [Key("lines", length, index) for length in self.lengths for index in range(self.count)]

    def measure(self, evaluated: EvaluatedModel, keys: list[Key]) -> Iterator[Sample]:
        asked = [lines_prompt(evaluated, key.length - ANSWER_TOKENS, self.seed, key.index) for key in keys]
        for place, written in evaluated.write([prompt for prompt, _ in asked], ANSWER_TOKENS, stop=("\n",)):
            prompt, value = asked[place]
            right = first_integer(written) == value
            yield keys[place], {"prompt_tokens": len(prompt), "reference": value, "written": written, "right": right}

    def scores(self, samples: list[dict[str, Any]]) -> list[Measurement]:
        return [
            Measurement("accuracy", domain, length, **share([each["right"] for each in group]))
            for (domain, length), group in by(samples, "domain", "length")
        ]


def lines_prompt(evaluated: EvaluatedModel, length: int, seed: int, index: int) -> tuple[list[int], int]:
    """As many lines as fit into ``length`` tokens with the question for one of them, anywhere among them; and its value.

    Raises:
        UserError: not even two lines fit, or more than there are names for.
    """
    adjectives, nouns = ADJECTIVES.split(), NOUNS.split()
    order = permutation(len(adjectives) * len(nouns), "lines", seed, index)
    names = [f"{adjectives[i % len(adjectives)]}-{nouns[i // len(adjectives)]}" for i in order]
    values = [10_000 + int(word % np.uint64(40_000)) for word in random_words(len(names), "values", seed, index)]
    near = names[: length // LEAST_TOKENS + 1]  # more cannot fit
    texts = [LINE.format(name=name, value=value) for name, value in zip(near, values, strict=False)]
    lines, questions = (evaluated.tokenizer.batch(rows) for rows in (texts, [LINE_QUESTION.format(name=name) for name in near]))
    opening = evaluated.tokenizer.encode(LINES_OPENING)
    ends = np.cumsum([len(row) for row in lines]) + len(opening) + max(map(len, questions))
    rows = lines[: int(np.searchsorted(ends, length, side="right"))]
    if len(rows) == len(names):
        raise UserError(
            f"longchat_lines: {length + ANSWER_TOKENS:,} tokens hold more lines than have names ({len(names):,}); choose shorter lengths"
        )
    if len(rows) < 2:
        raise UserError(
            f"longchat_lines: a length of {length + ANSWER_TOKENS} tokens holds no record of two lines; choose longer lengths"
        )
    chosen = int(random_words(1, "chosen", seed, index)[0] % np.uint64(len(rows)))
    return [*opening, *(token for row in rows for token in row), *questions[chosen]], values[chosen]


def first_integer(text: str) -> int | None:
    """The first whole number in ``text``; 12,345 is one number."""
    found = re.search(r"\d+(?:,\d{3})*", text)
    return int(found[0].replace(",", "")) if found else None
