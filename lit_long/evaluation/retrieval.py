"""Retrieval from long texts: FIRST-SENTENCE-RETRIEVAL (Xiong et al. 2023, §4.1) and PASSKEY (Mohtashami and Jaggi 2023).

A prompt is read once. Then the model is scored on the right answer, teacher-forced (each token is predicted with the true ones before
it: token accuracy and nats), and goes back to write an answer of its own, token by token the likeliest, whose ROUGE-L is the paper's
measure. A passkey is found when all its digits are the likeliest tokens, which is when greedy decoding writes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_long.config import EvaluationConfig
from lit_long.data.synthetic import DOMAIN, RetrievalExample, passkey_examples, retrieval_examples
from lit_long.data.token_store import Store
from lit_long.evaluation.measurement import Measurement
from lit_long.generation.decode import Sequences
from lit_long.model.llama import Llama

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Answered:
    """How one example went: nats and hits [tokens] of the scored answer, and the ids that the model wrote."""

    nats: Tensor
    hits: Tensor
    written: list[int]


def retrieval(model: Llama, store: Store, evaluation: EvaluationConfig, advance: Advance) -> list[Measurement]:
    """Measurements of both tasks, at every length the evaluation asks for; the same texts at each."""
    rows: list[Measurement] = []
    domain = evaluation.retrieval_domain or DOMAIN
    for length in evaluation.retrieval_lengths:
        longest = max(evaluation.retrieval_lengths)
        examples = retrieval_examples(store, length, evaluation.retrieval_examples, max_length=longest, domain=domain)
        answers = answer(model, examples, evaluation.batch_tokens, advance)
        nats, hits = (torch.cat([getattr(found, name) for found in answers]).double() for name in ("nats", "hits"))
        rouge = rouge_l([store.tokenizer.decode(found.written) for found in answers], [example.text for example in examples])
        common = {"n": len(examples), "unit": "examples", "tokens": len(nats)}
        rows.append(Measurement("retrieval_accuracy", domain, length, float(hits.mean()), **common))
        rows.append(Measurement("retrieval_nats", domain, length, float(nats.mean()), **common))
        rows.append(Measurement("retrieval_rouge_l", domain, length, rouge, **common))
        if evaluation.retrieval_control and length == min(evaluation.retrieval_lengths):
            answers = answer(model, control_examples(examples), evaluation.batch_tokens, advance)
            hits = torch.cat([found.hits for found in answers]).double()
            rouge = rouge_l([store.tokenizer.decode(found.written) for found in answers], [example.text for example in examples])
            rows.append(Measurement("retrieval_control", domain, length, float(hits.mean()), **common))
            rows.append(Measurement("retrieval_control_rouge_l", domain, length, rouge, **common))
    for length in evaluation.passkey_lengths:
        longest = max(evaluation.passkey_lengths)
        examples = passkey_examples(store, length, evaluation.retrieval_examples, max_length=longest, domain=domain)
        answers = answer(model, examples, evaluation.batch_tokens, advance, write=False)
        found = sum(bool(each.hits.all()) for each in answers) / len(answers)
        common = {"n": len(examples), "unit": "examples", "tokens": sum(len(each.hits) for each in answers)}
        rows.append(Measurement("passkey_accuracy", domain, length, found, **common))
    return rows


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
