"""Answers that a model writes to questions about held-out texts, as LLaMA 2 Long's Table 9 and Llama-2-7B-32K-Instruct are judged, on questions made by rule.

document_qa         a question about one sentence of a document (data/questions.py), which lies at a known depth of it
multi_document_qa   the same about one of several documents, as many as fit into the length
chapter_summary     three parts of a chapter; its summary is the first sentence of each

A prompt is written as in training: as instruction data of the same form, through the model's chat template if it has one, else plainly. Every length has the
same questions, with more text around what answers them, and no text was trained on. The model writes the likeliest tokens up to a line's end.

Exact match and F1 are SQuAD's, as Qasper, NarrativeQA and QuALITY have them in SCROLLS: without case, punctuation and articles. Answers begin with the words that the question
quotes. Exact match asks for them, too; F1 and ROUGE-L are of what follows them, or copying the question would score.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from lit_long.config import UserError
from lit_long.data.conversations import ChatTemplate, Encoder
from lit_long.data.questions import (
    CHAPTER,
    PARTS,
    PASSAGE,
    Passages,
    Question,
    ask,
    ask_of_several,
    conversation,
    make_chapter,
    question_about,
    sentences,
)
from lit_long.data.token_store import Store
from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.evaluation.in_memory_corpus import InMemoryCorpus
from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.retrieval import rouge_l
from lit_long.evaluation.samples import Key
from lit_long.evaluation.scrolls import rouge, squad
from lit_long.evaluation.statistics import mean, share
from lit_long.evaluation.task import Sample, Task, by

TEMPLATE = 24  # tokens that a conversation's template may take
THIRDS = ("first_third", "middle_third", "last_third")  # of the document, in which the answer lies
NEAR = 0.1  # how far from its depth in the longest text a sentence may lie
_TRIES = 200


@dataclass(frozen=True)
class Example:
    """``content``: a row of instruction data, the right answer included (data/conversations.py). ``depth``: 0 to 1, where in the text the answer should lie."""

    content: Any
    reference: str
    quoted: str = ""
    depth: float = 0.0
    kind: str = ""


@dataclass
class Written(Task):
    """A task whose answers are written. ``count`` questions at every length. ``new``: tokens that are kept free for an answer."""

    prompt: ClassVar[str] = "lit-long/1, as instruction data"
    new: ClassVar[int]

    texts: InMemoryCorpus | Store
    data: str
    domain: str
    lengths: list[int]
    count: int = 64
    seed: int = 0
    found: list[Any] = field(default_factory=list, repr=False)

    @abstractmethod
    def make(self, index: int) -> Any:
        """What example ``index`` is about, at every length."""

    @abstractmethod
    def example(self, made: Any, length: int) -> Example:
        """With ``new`` tokens for the answer it may exceed ``length`` by what the encoder cuts off."""

    @abstractmethod
    def score(self, written: str, example: Example) -> dict[str, float]:
        """Of one answer."""

    def settings(self) -> dict[str, Any]:
        return {"data": self.data, "longest": max(self.lengths), "count": self.count, "seed": self.seed}

    def keys(self) -> list[Key]:
        return [Key(self.domain, length, index) for length in self.lengths for index in range(self.count)]

    def check(self, evaluated: EvaluatedModel) -> None:
        super().check(evaluated)
        self.ask(evaluated, min(self.lengths), 0)

    def ask(self, evaluated: EvaluatedModel, length: int, index: int) -> tuple[list[int], float, Example]:
        """Tokens of the prompt, at most ``length`` − ``new``; how deep the answer lies in it; and the example."""
        own = evaluated.tokenizer
        template = ChatTemplate(own.chat_template, own.special, own.where) if own.chat_template else None
        while len(self.found) <= index:  # in their order: none is about the same sentence as one before it
            self.found.append(self.make(len(self.found)))
        example = self.example(self.found[index], length)
        longest = length - self.new + self.tokens(f" {example.reference}\n")
        encoder = Encoder.make(self.texts.tokenizer, self.texts.separator, template, longest)
        encoded = encoder(json.dumps(example.content))
        tokens = [] if encoded is None else encoded.tokens[: encoded.answers[-1][0]].tolist()
        if not 0 < len(tokens) <= length - self.new:
            raise UserError(f"{self.name}: a length of {length} tokens leaves no room for a text; choose longer lengths")
        return tokens, example.depth if encoded.depth is None else encoded.depth, example

    def tokens(self, text: str) -> int:
        return len(self.texts.tokenizer.encode(text, add_special_tokens=False))

    def measure(self, evaluated: EvaluatedModel, keys: list[Key]) -> Iterator[Sample]:
        asked = [self.ask(evaluated, key.length, key.index) for key in keys]
        for place, written in evaluated.write([tokens for tokens, *_ in asked], self.new, stop=("\n",)):
            tokens, depth, example = asked[place]
            about = {"prompt_tokens": len(tokens), "depth": round(depth, 3), "kind": example.kind}
            about |= {"reference": example.reference, "written": written}
            yield keys[place], about | self.score(written, example)


@dataclass
class DocumentQA(Written):
    """Question ``index`` lies at depth (``index`` + ½) / ``count``; every other one asks for a short answer."""

    name: ClassVar[str] = "document_qa"
    new: ClassVar[int] = 64

    def make(self, index: int) -> Example:
        longest, depth, kind = max(self.lengths), (index + 0.5) / self.count, self.kind(index)
        passages = Passages(self.texts, self.domain, "validation", longest)
        for attempt in range(_TRIES):
            text = passages.draw(longest, self.name, self.seed, index, attempt)
            nearest = min(sentences(text), key=lambda span: abs(span[0] / len(text) - depth), default=None)
            question = question_about(text, nearest, kind) if nearest else None
            if question and abs(question.start / len(text) - depth) <= NEAR and self.is_new(question):
                row = {"document": text, "chunk_start": question.start, "chunk_end": question.stop, "depth": depth, "kind": kind}
                row |= {"question": question.asked, "answer": question.answer}
                return Example(row, question.answer, question.quoted, depth, kind)
        raise UserError(f"{self.name}: {_TRIES} texts of {longest} tokens had no sentence to ask about at depth {depth:.2f}")

    def example(self, made: Example, length: int) -> Example:
        return made

    def kind(self, index: int) -> str:
        return ("normal", "short")[index % 2]

    def is_new(self, question: Question) -> bool:
        """Whether no example is about that sentence, and there is room to write it."""
        there = {example.quoted for example in self.found}
        return question.quoted not in there and self.tokens(question.answer) < self.new

    def score(self, written: str, example: Example) -> dict[str, float]:
        beyond = [text.strip().removeprefix(example.quoted).strip() for text in (written, example.reference)]
        exact = squad(written, [example.reference])["exact_match"]
        return {"exact_match": exact, "f1": squad(beyond[0], beyond[1:])["f1"], "rouge_l": rouge_l(beyond[:1], beyond[1:])}

    def scores(self, samples: list[dict[str, Any]]) -> list[Measurement]:
        rows = []
        for (domain, length), group in by(samples, "domain", "length"):
            parts = {"exact_match": group} | {f"exact_match_{kind}": own for (kind,), own in by(group, "kind")}
            thirds = [min(2, int(3 * each["depth"])) for each in group]
            for number, name in enumerate(THIRDS):
                parts[f"exact_match_{name}"] = [each for each, third in zip(group, thirds, strict=True) if third == number]
            for name, own in parts.items():
                if own:
                    rows.append(Measurement(name, domain, length, **share([each["exact_match"] == 1 for each in own])))
            rows += [Measurement(name, domain, length, **mean([each[name] for each in group])) for name in ("f1", "rouge_l")]
        return rows


@dataclass(frozen=True)
class SeveralDocuments:
    """``passages``: as many as the longest length holds; the question is about the first."""

    question: Question
    kind: str
    passages: list[str]
    depth: float

    @property
    def quoted(self) -> str:
        return self.question.quoted


@dataclass
class MultiDocumentQA(DocumentQA):
    """Documents of 40 tokens, one of them asked about: that at depth (``index`` + ½) / ``count``, or the nearest."""

    name: ClassVar[str] = "multi_document_qa"
    new: ClassVar[int] = 48

    def make(self, index: int) -> SeveralDocuments:
        source = Passages(self.texts, self.domain, "validation", PASSAGE)
        for attempt in range(_TRIES):
            key = (self.name, self.seed, index, attempt)
            passages = [source.draw(PASSAGE, *key, number) for number in range(max(self.lengths) // PASSAGE)]
            whole = "\n\n".join(passages)
            for question in ask(passages[0], self.kind(index), *key):
                if whole.count(question.quoted) == 1 and self.is_new(question):
                    return SeveralDocuments(question, self.kind(index), passages, (index + 0.5) / self.count)
        raise UserError(f"{self.name}: {_TRIES} texts of {PASSAGE} tokens had no sentence to ask about")

    def example(self, made: SeveralDocuments, length: int) -> Example:
        question, passages = made.question, made.passages
        for count in range(min(len(passages), length // PASSAGE), 1, -1):
            place = round(made.depth * (count - 1))
            asked = ask_of_several([*passages[1 : place + 1], passages[0], *passages[place + 1 : count]], question)
            if self.tokens(asked) + TEMPLATE <= length - self.new:
                depth = place / (count - 1)
                return Example(conversation(asked, question.answer), question.answer, question.quoted, depth, made.kind)
        raise UserError(f"{self.name}: a length of {length} tokens has no room for two documents; choose longer lengths")


@dataclass
class ChapterSummary(Written):
    """Parts as long as the length allows, and the first sentence of each."""

    name: ClassVar[str] = "chapter_summary"
    new: ClassVar[int] = 96

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"shortest": min(self.lengths)}  # its parts hold the sentences, too

    def size(self, length: int) -> int:
        """Tokens of a part."""
        return (length - self.new - self.tokens(CHAPTER) - TEMPLATE) // PARTS - 4  # and its heading's

    def make(self, index: int) -> list[str]:
        most, least = (self.size(length) for length in (max(self.lengths), min(self.lengths)))
        source = Passages(self.texts, self.domain, "validation", max(1, most))
        for attempt in range(_TRIES if least > 0 else 0):
            parts = [source.draw(most, self.name, self.seed, index, attempt, number) for number in range(PARTS)]
            made = make_chapter(self.cut(parts, least))
            if made and make_chapter(parts) and self.tokens(made[1]) < self.new:
                return parts
        raise UserError(
            f"{self.name}: a length of {min(self.lengths)} tokens leaves {max(0, least)} for a part, which must hold a sentence; choose longer lengths"
        )

    def cut(self, parts: list[str], tokens: int) -> list[str]:
        """The first tokens of each part."""
        ends = [self.texts.tokenizer.encode(part, add_special_tokens=False).offsets for part in parts]
        return [part[: places[:tokens][-1][1]] for part, places in zip(parts, ends, strict=True)]

    def example(self, made: list[str], length: int) -> Example:
        chapter, summary = make_chapter(self.cut(made, self.size(length)))
        return Example(conversation(CHAPTER.format(chapter), summary), summary)

    def score(self, written: str, example: Example) -> dict[str, float]:
        return rouge({"outputs": [example.reference]}, [written])

    def scores(self, samples: list[dict[str, Any]]) -> list[Measurement]:
        names = {"rouge1": "rouge_1", "rouge2": "rouge_2", "rougeL": "rouge_l"}
        return [
            Measurement(name, domain, length, **mean([each[key] for each in group]))
            for (domain, length), group in by(samples, "domain", "length")
            for key, name in names.items()
        ]
