"""BABILong's documents (Kuratov et al. 2024): bAbI's facts among the sentences of books, made as its authors make them.

A question's facts keep their order and go between sentences of a book, at places that are drawn; the sentences begin anywhere in a book, and those of fewer than 10
tokens are left out. Of ``length`` tokens 300 are the prompt's, and questions with more facts than an eighth of the rest are not asked (their
data/create_tasks.py and babilong/babilong_utils.py). What differs: tokens are the model's own, not GPT-2's; books are held-out texts, not PG19's test split; a
document is a function of (task, tokenizer, texts, length, seed). Instruction, examples and the score, whether the answer contains the target, are lm-eval's.

``data=FOLDER`` holds bAbI's own files, ``qa1_single-supporting-fact_test.txt`` …, as in tasks_1-20_v1-2/en-10k, compressed or not.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lit_long.config import UserError
from lit_long.data.paths import Listing, files_below, opened, readable
from lit_long.data.sampling import permutation, random_words
from lit_long.evaluation.public_data import Unavailable

if TYPE_CHECKING:
    from lit_long.data.token_store import Store
    from lit_long.evaluation.evaluated_model import EvaluatedModel
    from lit_long.evaluation.in_memory_corpus import InMemoryCorpus

PROMPT = 300  # tokens: instruction, examples, question and answer
FACT = 8  # tokens of a document for each fact that it may have
SHORTEST = 10  # tokens of a sentence
CHARACTERS = 10  # of a book for each token that is wanted: sentences come from so long a piece


class Question(NamedTuple):
    """``facts``: the sentences before the question, in their order, without the questions among them."""

    facts: list[str]
    question: str
    answer: str


def documents(
    task: str,
    evaluated: EvaluatedModel,
    texts: InMemoryCorpus | Store,
    domain: str,
    length: int,
    count: int,
    seed: int,
    data: str,
) -> list[dict[str, Any]]:
    """``count`` documents of ``length`` tokens with the prompt, in the schema of lm-eval's task: input, question, target.

    Raises:
        Unavailable: bAbI is not there, or the length leaves no room for a book.
        UserError: it is damaged, or the texts have no sentences.
    """
    size = length - PROMPT
    questions = [each for each in read_questions(task, data) if len(each.facts) < size // FACT]
    if not questions:
        raise Unavailable(
            f"{task}: {length:,} tokens leave no room for a book around its facts; the least are about {PROMPT + 128}"
        )
    order = permutation(len(questions), "babilong", task, seed)
    return [
        hidden(questions[order[index % len(order)]], evaluated, texts, domain, size, (task, length, seed, index))
        for index in range(count)
    ]


def read_questions(task: str, data: str) -> list[Question]:
    """All of a task's questions, each with the facts told before it. A story begins where the lines are numbered from 1 again."""
    name = task.removeprefix("babilong_")
    if not data:
        raise Unavailable(f"{task}: needs bAbI's files ({name}_…_test.txt): data=FOLDER that holds them")
    root = Path(data).expanduser()
    if not root.is_dir():
        raise UserError(f"data={data}: there is no such folder")
    found = [file for file in files_below("data", Listing(root)) if re.match(rf"{name}_[\w-]+_test\.txt", file.name)]
    if not found:
        raise Unavailable(f"{task}: data={data} holds no {name}_…_test.txt of bAbI (tasks_1-20_v1-2/en-10k)")
    file = next((each for each in sorted(found) if each.parent.name == "en-10k"), min(found))
    with readable("data", str(file)), opened(str(file)) as stream:
        lines = stream.read().decode("utf-8", errors="replace").strip().split("\n")
    facts: list[str] = []
    questions = []
    for place, line in enumerate(lines):
        number, _, rest = line.partition(" ")
        if not number.isdigit() or not rest.strip():
            raise UserError(f"{file}, line {place + 1}: {line[:40]!r} is no numbered sentence of bAbI's; is it another file?")
        facts = [] if number == "1" else facts
        text, *answer = rest.split("\t")
        if answer:
            questions.append(Question(list(facts), text.strip(), answer[0]))
        else:
            facts.append(text.strip())
    return questions


def hidden(
    one: Question, evaluated: EvaluatedModel, texts: InMemoryCorpus | Store, domain: str, size: int, key: tuple[Any, ...]
) -> dict[str, Any]:
    """The question's facts in sentences of a book: ``size`` tokens together."""
    facts = [evaluated.encode(f" {fact}") for fact in one.facts]
    book = sentences(evaluated, texts, domain, size - sum(map(len, facts)), key)
    places = sorted(int(word % np.uint64(len(book) + 1)) for word in random_words(len(facts), "places", *key))
    tokens: list[int] = []
    for place in range(len(book) + 1):
        for fact, where in zip(facts, places, strict=True):
            tokens += fact if where == place else []
        tokens += book[place] if place < len(book) else []
    return {"input": evaluated.tokenizer.decode(tokens).strip(), "question": one.question, "target": one.answer}


def sentences(
    evaluated: EvaluatedModel, texts: InMemoryCorpus | Store, domain: str, size: int, key: tuple[Any, ...]
) -> list[list[int]]:
    """Sentences in tokens, ``size`` together: the last one is cut. They follow one another from a drawn place in a drawn text on, and from another where it ends."""
    from nltk import PunktSentenceTokenizer

    rows, found, room = texts.documents(domain, "validation"), [], size
    for piece in range(1000):
        text, start = random_words(2, "book", *key, piece)
        tokens = rows[int(text % np.uint64(len(rows)))][1:]
        first = int(start % np.uint64(max(1, len(tokens))))
        written = evaluated.tokenizer.decode(tokens[first : first + CHARACTERS * size].tolist())[: CHARACTERS * size]
        for sentence in PunktSentenceTokenizer().tokenize(written)[1:-1]:  # both ends are parts of sentences
            cut = evaluated.encode(f" {sentence}")
            if len(cut) < SHORTEST:
                continue
            found.append(cut[:room])
            room -= len(found[-1])
            if not room:
                return found
    raise UserError(
        f"babilong: the texts of domain '{domain}' have no sentences of {SHORTEST} tokens to hide facts among; name others with text=FOLDER"
    )
