"""The paper's long tasks, on SCROLLS' files (Shaham et al. 2022): how a row becomes a question, and how an answer is scored.

A row has ``id``, ``input`` and ``output``; the question stands before the text in ``input``, two line ends between. Rows of one id are
one question with several right answers. lm-eval's task files in tasks/ put the paper's prompt around it: ``{CONTEXT} Q: {QUESTION}, A:``
(LLaMA 2 Long, Table 3), for QuALITY with ``Choices:`` before the answer, whose exact wording the paper does not give.

Metrics are SCROLLS': token F1 and exact match as for SQuAD, the best over the right answers; ROUGE-1, -2 and -L (F-measure, no stemming),
whose means over the samples have ROUGE-geo as their geometric mean.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lit_long.config import UserError

if TYPE_CHECKING:
    from datasets import Dataset

Doc = dict[str, Any]
CHOICE = re.compile(r" *\([A-D]\) *")
CONCLUSIONS = ["Not mentioned", "Entailment", "Contradiction"]
SUMMARIZE = "What is a summary of the preceding text?"


def questions(rows: Dataset) -> Dataset:
    """NarrativeQA, Qasper, QMSum, ContractNLI: text, question and the right answers."""
    return converted(rows, asked)


def choices(rows: Dataset) -> Dataset:
    """QuALITY: also the four options, between question and text."""
    return converted(rows, chosen)


def summaries(rows: Dataset) -> Dataset:
    """GovReport, SummScreenFD: the input is the text."""
    return converted(rows, lambda row: {"text": row["input"].strip(), "question": SUMMARIZE})


def converted(rows: Dataset, convert: Any) -> Dataset:
    """Documents with ``outputs``, those of one id together.

    Raises:
        UserError: a row of another schema, or without an answer.
    """
    from datasets import Dataset

    found: dict[str, Doc] = {}
    for number, row in enumerate(rows):
        if missing := [key for key in ("id", "input", "output") if not isinstance(row.get(key), str)]:
            raise UserError(f"SCROLLS, row {number}: has no {' and no '.join(missing)}; it has {', '.join(sorted(row))}")
        if not row["output"].strip():
            raise UserError(f"SCROLLS, row {number} ({row['id']}): its output, the reference, is empty; the test split has none")
        if row["id"] not in found:
            found[row["id"]] = {"id": row["id"], "outputs": [], **convert(row)}
        found[row["id"]]["outputs"].append(row["output"].strip())
    return Dataset.from_list(list(found.values()))


def asked(row: Doc) -> Doc:
    question, border, text = row["input"].partition("\n\n")
    if not border or not text.strip():
        raise UserError(f"SCROLLS, {row['id']}: its input has no text behind the question (two line ends between)")
    return {"question": question.strip(), "text": text.strip()}


def chosen(row: Doc) -> Doc:
    doc = asked(row)
    end = doc["text"].find("\n\n", max(0, doc["text"].find("(D)")))  # there may be blank lines between the options
    options, text = doc["text"][:end], doc["text"][end:]
    found = [" ".join(option.split()) for option in CHOICE.split(options)[1:]]
    if len(found) != 4 or not text.strip():
        raise UserError(f"SCROLLS, {row['id']}: has {len(found)} options (A) to (D) before its text, not 4")
    if " ".join(row["output"].split()) not in found:
        raise UserError(f"SCROLLS, {row['id']}: its output, {row['output'][:40]!r}, is none of its options")
    return doc | {"choices": found, "text": text.strip()}


def f1(doc: Doc, results: list[str]) -> dict[str, float]:
    return {"f1": squad(results[0], doc["outputs"])["f1"]}


def exact_match(doc: Doc, results: list[str]) -> dict[str, float]:
    return {"exact_match": squad(results[0], doc["outputs"])["exact_match"]}


def squad(written: str, right: list[str]) -> dict[str, float]:
    """Token F1 and exact match, 0 to 1: the best over the right answers, without articles, punctuation and case."""
    from torchmetrics.functional.text import squad as score

    answers = {"text": right, "answer_start": [0] * len(right)}
    found = score([{"prediction_text": written.strip(), "id": "0"}], [{"answers": answers, "id": "0"}])
    return {key: float(value) / 100 for key, value in found.items()}


def rouge(doc: Doc, results: list[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L, 0 to 1, each the best over the right answers."""
    from torchmetrics.functional.text import rouge_score

    keys = ("rouge1", "rouge2", "rougeL")
    each = [rouge_score(results[0].strip(), right, rouge_keys=keys) for right in doc["outputs"]]
    return {key: max(float(found[f"{key}_fmeasure"]) for found in each) for key in keys}
