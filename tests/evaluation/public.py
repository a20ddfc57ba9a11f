"""Small files of the public data sets' schemas, laid out as they are downloaded: every task of the suites ``paper`` and ``modern`` reads them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from lit_long.evaluation.lm_eval_tasks import LONGBENCH

STORY = "The ferry left at nine. Anna carried a blue lamp and a letter for the keeper. " * 6
FEW = 12  # rows of each split


class TaskLoader(yaml.SafeLoader):
    """Of lm-eval's task files, whose functions are left as their names."""


TaskLoader.add_constructor("!function", lambda loader, node: node.value)


def read_task(file: Path) -> dict:
    """A task file of lm-eval's."""
    return yaml.load(file.read_text(encoding="utf-8"), TaskLoader)


def jsonl(file: Path, rows: list[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def parquet(folder: Path, split: str, rows: list[dict], shards: int = 1) -> None:
    """As the hub names them."""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // shards)
    for shard in range(shards):
        file = folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows[shard * size : (shard + 1) * size]), file)


def scrolls(number: int, name: str) -> dict:
    question = f"What does Anna carry on day {number}?"
    output = f"a blue lamp and letter {number}"
    if name == "quality":
        options = "".join(
            f" ({letter}) {text} \n" for letter, text in zip("ABCD", ("a dog", output, "a boat", "nothing"), strict=True)
        )
        return {"id": f"{name}{number}", "pid": "0", "input": f"{question}\n\n{options}\n\n{STORY}", "output": output}
    if name == "contract_nli":
        output = ("Entailment", "Contradiction", "Not mentioned")[number % 3]
    text = STORY if name in ("gov_report", "summ_screen_fd") else f"{question}\n\n{STORY}"
    return {"id": f"{name}{number}", "pid": "0", "input": text, "output": output}


def write_scrolls(root: Path) -> None:
    for name in ("narrative_qa", "qasper", "quality", "qmsum", "contract_nli", "summ_screen_fd", "gov_report"):
        rows = [scrolls(number, name) for number in range(FEW)]
        if name == "narrative_qa":
            rows[1:1] = [rows[0] | {"output": "the lamp"}]  # a second right answer to the first question
        if name == "qasper":  # as an archive
            root.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(root / "qasper.zip", "w") as archive:
                for split in ("train", "validation"):
                    archive.writestr(f"qasper/{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
            continue
        for split in ("train", "validation"):
            jsonl(root / name / f"{split}.jsonl", rows)


def choice(number: int) -> dict:
    return {"text": [f"thing {each}" for each in range(4)], "label": ["A", "B", "C", "D"], "right": number % 4}


def write_short(root: Path) -> None:
    """All short tasks of the paper, as on the hub."""
    splits = ("train", "validation", "test")

    def each(folder: Path, made) -> None:
        for split in splits:
            parquet(folder, split, [made(number) for number in range(FEW)])

    each(root / "Rowan/hellaswag/data", lambda n: {
        "activity_label": "Rowing", "ctx_a": f"A man rows {n} boats.", "ctx_b": "then he",
        "endings": [f"stops {k}." for k in range(4)], "label": str(n % 4),
    })  # fmt: skip
    each(root / "baber/piqa/data", lambda n: {"goal": f"Open jar {n}", "sol1": "turn it", "sol2": "eat it", "label": n % 2})
    each(root / "lighteval/siqa/data", lambda n: {
        "context": f"Kim won {n} games.", "question": "How does Kim feel?", "answerA": "glad", "answerB": "sad", "answerC": "old",
        "label": str(n % 3 + 1),
    })  # fmt: skip
    each(root / "allenai/winogrande/winogrande_xl", lambda n: {
        "sentence": f"The cup did not fit in bag {n} because the _ was too big.", "option1": "cup", "option2": "bag", "answer": str(n % 2 + 1),
    })  # fmt: skip
    for config in ("ARC-Easy", "ARC-Challenge"):
        each(root / "allenai/ai2_arc" / config, lambda n: {
            "question": f"Which is number {n}?", "choices": {k: v for k, v in choice(n).items() if k != "right"}, "answerKey": "ABCD"[n % 4],
        })  # fmt: skip
    each(root / "allenai/openbookqa/main", lambda n: {
        "question_stem": f"Number {n} is a", "choices": {k: v for k, v in choice(n).items() if k != "right"}, "answerKey": "ABCD"[n % 4],
    })  # fmt: skip
    each(root / "tau/commonsense_qa/data", lambda n: {
        "question": f"Where is cat {n}?", "choices": {"text": list("vwxyz"), "label": list("ABCDE")}, "answerKey": "ABCDE"[n % 5],
    })  # fmt: skip
    for split in ("train", "validation"):
        parquet(root / "google-research-datasets/nq_open/nq_open", split, [
            {"question": f"who wrote book {n}", "answer": [f"Author {n}", f"A. {n}"]} for n in range(FEW)
        ])  # fmt: skip
        parquet(root / "mandarjoshi/trivia_qa/rc.nocontext", split, [
            {"question": f"Who was king {n}", "answer": {"aliases": [f"King {n}", f"Rex {n}"], "value": f"King {n}"}} for n in range(FEW)
        ], shards=2)  # fmt: skip
    for split in ("train", "test"):
        jsonl(root / "openai/gsm8k/main" / f"{split}.jsonl", [
            {"question": f"Tom has {n} eggs and buys 2. How many?", "answer": f"{n}+2={n + 2}\n#### {n + 2}"} for n in range(FEW)
        ])  # fmt: skip
        for subject in (
            *(
                "algebra",
                "counting_and_probability",
                "geometry",
                "intermediate_algebra",
                "number_theory",
                "prealgebra",
                "precalculus",
            ),
        ):
            parquet(root / "EleutherAI/hendrycks_math" / subject, split, [
                {"problem": f"What is ${n}+1$?", "level": "Level 1", "type": subject, "solution": f"It is $\\boxed{{{n + 1}}}$."}
                for n in range(FEW)
            ])  # fmt: skip
    parquet(root / "openai_humaneval" / "openai_humaneval", "test", [
        {
            "task_id": f"HumanEval/{n}", "prompt": f"def plus{n}(x):\n", "canonical_solution": f"    return x + {n}\n",
            "test": f"def check(f):\n    assert f(1) == {n + 1}\n", "entry_point": f"plus{n}",
        }
        for n in range(3)
    ])  # fmt: skip
    for split, start in (("prompt", 1), ("test", 11)):
        parquet(root / "mbpp" / "full", split, [
            {
                "task_id": n, "text": f"Write a function that adds {n}.", "code": f"def add(x):\n    return x + {n}",
                "test_list": [f"assert add({k}) == {n + k}" for k in range(3)], "test_setup_code": "",
            }
            for n in range(start, start + 6)
        ])  # fmt: skip


def write_mmlu(root: Path, subjects: list[str]) -> None:
    for subject in subjects:
        for split in ("dev", "test"):
            rows = [
                {"question": f"{subject} {n}?", "subject": subject, "choices": [f"{n} {k}" for k in "abcd"], "answer": n % 4}
                for n in range(5)
            ]
            jsonl(root / "cais/mmlu" / subject / f"{split}.jsonl", rows)


def write_longbench(root: Path) -> None:
    """As in its own data.zip: no split is named."""
    for name in LONGBENCH:
        rows = [
            {
                "input": f"What is {n}?", "context": STORY, "answers": ["Paragraph 3" if "retrieval" in name else f"lamp {n}"], "length": 90, "dataset": name, "language": "en",
                "all_classes": [f"lamp {k}" for k in range(4)], "_id": str(n), "question": f"What is {n}?",
            }
            for n in range(4)
        ]  # fmt: skip
        jsonl(root / "Xnhyacinth/LongBench/data" / f"{name}.jsonl", rows)
