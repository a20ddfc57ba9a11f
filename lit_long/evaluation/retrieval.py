"""Retrieval from long texts: FIRST-SENTENCE-RETRIEVAL (Xiong et al. 2023, §4.1) and PASSKEY (Mohtashami and Jaggi 2023).

A prompt is read once. Then the model is scored on the right answer, teacher-forced (each token is predicted with the true ones before
it: token accuracy and nats), and goes back to write an answer of its own, token by token the likeliest, whose ROUGE-L is the paper's
measure. A passkey is found when all its digits are the likeliest tokens, which is when greedy decoding writes it.

An evaluate stage (`retrieval`) and the tasks of `python -m lit_long.evaluate` ask the same examples and answer them with the same code.
Stages pool tokens: their accuracy is Σ hits / Σ tokens, that of the task ``first_sentence`` the mean over examples.

Of PASSKEY also k_max, the effective window of Position Interpolation (Chen et al. 2023, §3.3): the largest distance between the key and
the end of the prompt at which at least a fifth of the trials find it. PI takes 32 distances and 10 trials at the window to be tested;
here the distances are those of the examples at the longest length, and each trial (a seed) has other texts and keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_long.config import EvaluationConfig
from lit_long.data.synthetic import DOMAIN, PASSKEY, RetrievalExample, passkey_examples, retrieval_examples
from lit_long.data.token_store import Store
from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.pages import Pages
from lit_long.evaluation.samples import Key
from lit_long.evaluation.statistics import mean, ratio, share
from lit_long.evaluation.subject import Subject
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
    sentences = FirstSentence(store, "", domain, evaluation.retrieval_lengths, count)
    for length in evaluation.retrieval_lengths:
        examples = sentences.examples(length)
        answers = answer(model, examples, evaluation.batch_tokens, advance)
        accuracy, nats, rouge = pooled(store, domain, length, examples, answers)
        found += [
            replace(accuracy, metric="retrieval_accuracy"),
            replace(nats, metric="retrieval_nats"),
            replace(rouge, metric="retrieval_rouge_l"),
        ]
        if evaluation.retrieval_control and length == min(evaluation.retrieval_lengths):
            answers = answer(model, control_examples(examples), evaluation.batch_tokens, advance)
            accuracy, _, rouge = pooled(store, domain, length, examples, answers)
            found += [replace(accuracy, metric="retrieval_control"), replace(rouge, metric="retrieval_control_rouge_l")]
    keys = Passkey(store, "", domain, evaluation.passkey_lengths, count)
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
    sequences = Sequences(model, prompts, longest)
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

    texts: Pages | Store
    data: str
    domain: str
    lengths: list[int]
    count: int = 4
    seed: int = 0
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
        return retrieval_examples(self.texts, length, self.count, max_length=longest, seed=self.seed, domain=self.domain)

    def keys(self) -> list[Key]:
        return [Key(self.domain, length, index) for length in self.lengths for index in range(len(self.examples(length)))]

    def measure(self, subject: Subject, keys: list[Key]) -> Iterator[Sample]:
        examples = self.examples(keys[0].length)
        at_once = max(1, subject.batch_tokens // keys[0].length)
        for start in range(0, len(keys), at_once):
            group = keys[start : start + at_once]
            asked = [examples[key.index] for key in group]
            answers = answer(subject.model, asked, 10**9, lambda tokens: None, write=self.writes)
            yield from ((key, self.record(subject, key, *each)) for key, *each in zip(group, asked, answers, strict=True))

    def record(self, subject: Subject, key: Key, example: RetrievalExample, found: Answered) -> dict[str, Any]:
        """What is kept of one answer."""
        written = subject.words.decode(found.written)
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
                self.texts, length, self.count, max_length=longest, seed=self.seed + trial, domain=self.domain
            )
        ]

    def record(self, subject: Subject, key: Key, example: RetrievalExample, found: Answered) -> dict[str, Any]:
        return {
            "reference": example.text,
            "distance": distance(example, subject.encode(PASSKEY.format(key=example.text))),
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
    """The largest distance, in tokens, of which at least 20 % of the trials found the key; 0 if there is none."""
    return max((distance for distance, found in trials if sum(found) >= LEAST * len(found)), default=0)
