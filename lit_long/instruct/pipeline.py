"""Chunks → questions and answers → rules → critique → the files of a run. Everything but the replies is computed anew each time.

DIR/journal.jsonl     replies, as they came (journal.py)
DIR/examples.jsonl    every example that could be read from a reply, with the rules it failed, its verdict, and whether it is kept
DIR/train.jsonl       the kept ones with their whole document: rows for a source of instruction data (`instruct: {schema: qa}`)
DIR/manifest.json     what made them, how many got how far, and what the critique is worth; written last
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from lit_long.config import UserError
from lit_long.config.ranges import Count, CountOrNone, Range, Seed, Share
from lit_long.files import write_atomically
from lit_long.instruct import prompts
from lit_long.instruct.chunks import KINDS, Item, Items
from lit_long.instruct.critique import UNCHECKED, Verdict, plant, preferred, read_verdict, worth
from lit_long.instruct.extract import after_thoughts, between, first_question
from lit_long.instruct.filters import RULES, FilterConfig, Filters
from lit_long.instruct.generators import Generator, Local, Request
from lit_long.instruct.journal import Journal

EXAMPLES, TRAIN, MANIFEST = "examples.jsonl", "train.jsonl", "manifest.json"
QUESTION, VERDICT = "<question>", "<verdict>"
JUDGES = ("text", "likelihood")
Report = Callable[[str, float], None]


@dataclass
class PipelineConfig:
    """``n`` items are asked. ``threshold``, filters and ``n`` may change when a run is continued; nothing else."""

    n: Count = 20
    seed: Seed = 0
    chunk_tokens: Count = 768
    min_tokens: CountOrNone = 0  # of a document; 0 = twice the chunk's
    short: Share = 0.5  # share of the items that ask for a short answer
    turns: Annotated[int, Range(least=1, most=2)] = (
        1  # 2: the question is asked for alone, and then its answer, which small models do better
    )
    max_new_tokens: Count = 160  # of a reply
    critique_tokens: Count = 80
    judge: str = "text"  # text · likelihood: of the word correct, against wrong; needs a model of our own
    threshold: Share = 0.5  # score that is accepted
    planted: CountOrNone = 50
    filters: FilterConfig = field(default_factory=FilterConfig)

    def check(self) -> None:
        """Raise a UserError for values that make no sense."""
        if self.judge not in JUDGES:
            raise UserError(f"command line: judge must be {' or '.join(JUDGES)}, not {self.judge!r}")


@dataclass(frozen=True)
class Example:
    """A question and an answer about a chunk, as a reply has them."""

    item: Item
    question: str
    answer: str

    @property
    def kind(self) -> str:
        return self.item.kind

    @property
    def document_id(self) -> str:
        return self.item.document_id


class Run:
    """One folder's run.

    Args:
        generator: answers; ``critic`` judges, None for nobody.
        data: what the documents are (digest, domains), for the manifest.
        report: hears (message, share done).
    """

    def __init__(
        self,
        config: PipelineConfig,
        folder: Path,
        items: Items,
        generator: Generator,
        critic: Generator | None,
        data: dict[str, Any],
        report: Report,
    ) -> None:
        config.check()
        if config.judge == "likelihood" and critic is not None and not isinstance(critic, Local):
            raise UserError("command line: judge=likelihood needs a critic of our own, not an endpoint or rules")
        self.config, self.folder, self.items, self.generator, self.critic = config, folder, items, generator, critic
        self.data, self.report = data, report
        names = ("seed", "chunk_tokens", "min_tokens", "short", "turns", "max_new_tokens", "critique_tokens", "judge")
        self.recipe = {name: getattr(config, name) for name in names} | {
            "generator": generator.identity,
            "critic": critic.identity if critic else None,
            "prompts": prompts.digest(),
            "data": data,
        }
        self.journal = Journal(folder, self.recipe)

    def __call__(self) -> dict[str, Any]:
        """Ask what is not answered yet, write the files and return the manifest."""
        requests = [self.question_for(self.items[number]) for number in range(self.config.n)]
        self.answer(self.generator, requests, "asking")
        answered = [request for request in requests if request.key in self.journal.replies]
        halves = [half for request in answered if (half := self.answer_to(request))]
        self.answer(self.generator, halves, "asking for answers")
        examples = [example for request in answered if (example := self.read(request))]
        filters = Filters(self.config.filters)
        failed = [filters.failed(example.question, example.answer, example.kind, example.item.chunk) for example in examples]
        verdicts = self.judged([(f"critique/{example.item.number}", example, example.answer) for example in examples], "judging")
        sound = [example for example, rules in zip(examples, failed, strict=True) if not rules]
        pairs = plant(sound, self.config.planted, self.config.seed) if self.critic else []
        planted = self.judged(
            [(f"planted/{a.item.number}/{b.item.number}", a, b.answer) for a, b in pairs], "judging planted wrong answers"
        )
        rows = [self.row(*found) for found in zip(examples, failed, verdicts, strict=True)]
        kept = [example for example, row in zip(examples, rows, strict=True) if row["kept"]]
        write_lines(self.folder / EXAMPLES, rows)
        write_lines(self.folder / TRAIN, [training_row(example) for example in kept])
        manifest = self.manifest(len(answered), rows, verdicts, planted)
        write_atomically(self.folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        return manifest

    def question_for(self, item: Item) -> Request:
        """The request for an example, about a chunk that is short enough for the generator: with the second turn, too, whose prompt holds the
        reply to the first."""
        wanted = (prompts.GENERATE if self.config.turns == 1 else prompts.QUESTION)[item.kind]
        written = self.config.max_new_tokens
        while not (
            self.generator.fits(prompt := wanted.format(chunk=item.chunk), written)
            and self.generator.fits(prompts.ANSWER[item.kind].format(chunk=item.chunk, question=""), 2 * written)
        ):
            if item.end - item.start < 200:
                raise UserError(
                    f"max_new_tokens={self.config.max_new_tokens} leaves no room for a chunk in the generator's context"
                )
            item = item.cut(item.start + (item.end - item.start) * 7 // 8)
        begin, stop = (QUESTION, ("</answer>", "</Answer>")) if self.config.turns == 1 else ("", ("?\n", "? "))
        return Request(f"generate/{item.number}", item, prompt, begin, stop, self.config.max_new_tokens, item.seed)

    def answer(self, who: Generator, requests: list[Request], doing: str) -> None:
        """Ask for what is not in the journal, and put it there."""
        missing = [request for request in requests if request.key not in self.journal.replies]
        done = len(requests) - len(missing)
        for replies in who.ask(missing) if missing else ():
            self.journal.add(replies)
            done += len(replies)
            self.report(f"{doing}: {done} of {len(requests)}", done / len(requests))

    def answer_to(self, request: Request) -> Request | None:
        """The request for the answer alone, where a reply holds a question and no answer."""
        reply = self.journal.replies[request.key]
        found = between(reply, ("question", "answer")) if self.config.turns == 1 else first_question(reply)
        if "answer" in found or "?" not in found.get("question", ""):
            return None
        question = found["question"][: found["question"].index("?") + 1]
        prompt = prompts.ANSWER[request.item.kind].format(chunk=request.item.chunk, question=question)
        checked = (question, "")
        return replace(request, key=f"answer/{request.item.number}", prompt=prompt, begin="", stop=("\n\n",), checked=checked)

    def read(self, request: Request) -> Example | None:
        reply = between(self.journal.replies[request.key], ("question", "answer")) if self.config.turns == 1 else {}
        if len(reply) < 2 and (half := self.answer_to(request)) and half.key in self.journal.replies:
            answer = between(f"<answer>{after_thoughts(self.journal.replies[half.key])}", ("answer",))
            reply = {"question": half.checked[0], **answer}
        return Example(request.item, reply["question"], reply["answer"]) if len(reply) == 2 else None

    def judged(self, wanted: list[tuple[str, Example, str]], doing: str) -> list[Verdict]:
        """Verdicts on (key, example, answer); what the critic never answered is unclear."""
        if self.critic is None:
            return [UNCHECKED] * len(wanted)
        requests = [self.check_of(*one) for one in wanted]
        if self.config.judge == "text":
            self.answer(self.critic, requests, doing)
            return [read_verdict(self.journal.replies.get(request.key, "")) for request in requests]
        for done, request in enumerate(requests):
            if request.key not in self.journal.replies:
                self.journal.add({request.key: repr(self.critic.preference(request, prompts.VERDICTS))})
                self.report(f"{doing}: {done + 1} of {len(requests)}", (done + 1) / len(requests))
        return [preferred(float(self.journal.replies[request.key])) for request in requests]

    def check_of(self, key: str, example: Example, answer: str) -> Request:
        item = example.item
        prompt = prompts.CRITIQUE.format(chunk=item.chunk, question=example.question, answer=answer)
        if not self.critic.fits(prompt, self.config.critique_tokens):
            raise UserError(
                f"critic: a chunk, its question and its answer exceed what {self.critic.name} reads; lower chunk_tokens"
            )
        checked = (example.question, answer)
        return Request(key, item, prompt, VERDICT, ("</reason>",), self.config.critique_tokens, item.seed + 1, checked)

    def row(self, example: Example, failed: list[str], verdict: Verdict) -> dict[str, Any]:
        """A line of examples.jsonl."""
        item = example.item
        return {
            "document_id": item.document_id,
            "chunk_start": item.start,
            "chunk_end": item.end,
            "question": example.question,
            "answer": example.answer,
            "kind": item.kind,
            **asdict(verdict),
            "failed": failed,
            "kept": not failed and verdict.accepts(self.config.threshold),
            "depth": item.depth,
            "item": item.number,
        }

    def manifest(
        self, answered: int, rows: list[dict[str, Any]], verdicts: list[Verdict], planted: list[Verdict]
    ) -> dict[str, Any]:
        kept = [row for row in rows if row["kept"]]
        unanswered = getattr(self.generator, "unanswered", {}) | getattr(self.critic, "unanswered", {})
        return {
            "generator": self.generator.name,
            "critic": self.critic.name if self.critic else None,
            "recipe": self.recipe,
            "config": asdict(self.config),
            "counts": {
                "asked": self.config.n,
                "generated": answered,
                "parsed": len(rows),
                "critiqued": sum(verdict != UNCHECKED for verdict in verdicts),
                "kept": len(kept),
            },
            "kinds": {kind: sum(row["kind"] == kind for row in kept) for kind in KINDS},
            "failed": {rule: sum(rule in row["failed"] for row in rows) for rule in RULES},
            "verdicts": {name: sum(v.verdict == name for v in verdicts) for name in sorted({v.verdict for v in verdicts})},
            "critique": worth(planted, verdicts, self.config.threshold) if self.critic else None,
            "unanswered": unanswered,
        }


def training_row(example: Example) -> dict[str, Any]:
    """A line of train.jsonl."""
    item = example.item
    return {
        "document_id": item.document_id,
        "document": item.document,
        "chunk_start": item.start,
        "chunk_end": item.end,
        "depth": item.depth,
        "kind": item.kind,
        "question": example.question,
        "answer": example.answer,
    }


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
