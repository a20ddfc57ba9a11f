"""Which of lm-eval's tasks the paper's tables and today's field are made of, with how many shots, and which number of each counts.

Shots are the paper's where it says so (Tables 2, 3, 15). It does not for MMLU by table (5, Table 2), for commonsense (Llama 2's: none, 7 for
CommonsenseQA), and for SCROLLS' tasks that it has no base-model numbers of (ContractNLI 2, the summaries 0). MATH is scored as Hendrycks et
al. do, by the text of the answer. TriviaQA is the set without evidence; the paper's is the Wikipedia part.
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.ruler import RULER

PROMPT = 16384  # tokens of the longest prompt: LLaMA 2 Long, §3.1
COMMONSENSE = ("piqa", "social_iqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa", "commonsense_qa")
LONGBENCH = (
    *("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique", "gov_report", "qmsum", "multi_news", "trec"),
    *("triviaqa", "samsum", "passage_count", "passage_retrieval_en", "lcc", "repobench-p"),
)
BABILONG = tuple(f"babilong_qa{number}" for number in range(1, 6))  # those that BABILong has at every length
CUSTOM = "own"  # the folder tasks/ beside this file


@dataclass(frozen=True)
class Spec:
    """One row of a table: which of lm-eval's tasks it is. What it leaves open, the task files say; ours (in tasks/) say all of it.

    folder    of lm-eval's tasks that the task files lie in, or ``CUSTOM``; "": anywhere among lm-eval's
    tasks     the task files' names by domain; a tag stands for all its tasks
    shots     examples before the question
    metric    the number that counts, as lm-eval calls it; "": the first
    long      measured at every length, which is the longest prompt; others once. In a task file: ``metadata: {long: true}``
    made      generated at every length, which is the prompt's with the answer; else a data set
    hides     in held-out texts, as the tasks of ours do: text=FOLDER
    """

    folder: str
    tasks: dict[str, tuple[str, ...]]
    shots: int | None = None
    metric: str = ""
    long: bool = False
    made: bool = False
    hides: bool = False


def custom(name: str) -> Spec:
    return Spec(CUSTOM, {"all": (f"lit_long_{name}",)})


def upstream(folder: str, name: str, shots: int | None, metric: str, **options: bool) -> Spec:
    return Spec(folder, {"all": (name,)}, shots, metric, **options)


LONG = {
    name: custom(name) for name in ("narrativeqa", "qasper", "quality", "qmsum", "contract_nli", "summ_screen_fd", "gov_report")
}
SHORT = {
    "humaneval": custom("humaneval"),
    "mbpp": custom("mbpp"),
    "gsm8k": upstream("gsm8k", "gsm8k_cot", 8, "exact_match"),
    "math": Spec("hendrycks_math", {"all": ("hendrycks_math",)}, 4, "exact_match"),
    "mmlu": Spec(
        "mmlu/default",
        {name: (f"mmlu_{name}_tasks",) for name in ("humanities", "stem", "social_sciences", "other")},
        5,
        "acc",
    ),
    "nq_open": upstream("nq_open", "nq_open", 5, "exact_match"),
    "triviaqa": upstream("triviaqa", "triviaqa", 5, "exact_match"),
    "piqa": upstream("piqa", "piqa", 0, "acc_norm"),
    "social_iqa": upstream("siqa", "social_iqa", 0, "acc"),
    "hellaswag": upstream("hellaswag", "hellaswag", 0, "acc_norm"),
    "winogrande": upstream("winogrande", "winogrande", 0, "acc"),
    "arc_easy": upstream("arc", "arc_easy", 0, "acc_norm"),
    "arc_challenge": upstream("arc", "arc_challenge", 0, "acc_norm"),
    "openbookqa": upstream("openbookqa", "openbookqa", 0, "acc_norm"),
    "commonsense_qa": upstream("commonsense_qa", "commonsense_qa", 7, "acc"),
}
MODERN = {name: upstream("ruler", name, 0, "score", long=True, made=True) for name in RULER} | {
    f"longbench_{name}": upstream("longbench", f"longbench_{name}", 0, "score", long=True) for name in LONGBENCH
}
IN_BOOKS = {  # of qa5's three examples lm-eval shows two; BABILong's authors show all
    name: upstream("babilong", name, 3 if name == "babilong_qa5" else None, "acc", long=True, made=True, hides=True)
    for name in BABILONG
}
SPECS = LONG | SHORT | MODERN | IN_BOOKS
# What has been scored on the real data by this project, not only on small files of its schema. The generated ones are their own data.
VERIFIED = {name for name, spec in SPECS.items() if spec.made}
VERIFIED |= {
    "piqa",
    "arc_easy",
    "arc_challenge",
    "openbookqa",
    "winogrande",
    "social_iqa",
    "hellaswag",
    "mmlu",
    "nq_open",
    "triviaqa",
    "gsm8k",
    "humaneval",
    "mbpp",
}

# Rows of the splits as published, "OWNER/NAME CONFIGURATION SPLIT": of other numbers a score says so, since it is of a part, or of a stand-in.
ROWS = {
    "Rowan/hellaswag validation": 10_042,
    "baber/piqa validation": 1838,
    "lighteval/siqa validation": 1954,
    "allenai/winogrande winogrande_xl validation": 1267,
    "allenai/openbookqa main test": 500,
    "allenai/ai2_arc ARC-Easy test": 2376,
    "allenai/ai2_arc ARC-Challenge test": 1172,
    "openai/gsm8k main test": 1319,
    "google-research-datasets/nq_open train": 87_925,
    "google-research-datasets/nq_open validation": 3610,
    "mandarjoshi/trivia_qa rc.nocontext train": 138_384,
    "mandarjoshi/trivia_qa rc.nocontext validation": 17_944,
    "openai/openai_humaneval test": 164,
    "google-research-datasets/mbpp full prompt": 10,
    "google-research-datasets/mbpp full test": 500,
    "tau/scrolls qmsum train": 1257,
    "tau/scrolls qmsum validation": 272,
    "tau/scrolls contract_nli train": 7191,
    "tau/scrolls contract_nli validation": 1037,
}


def row_remark(path: str, config: str | None, split: str, rows: int, shots: bool) -> str:
    """What a score must say of a split that has not the published number of rows; "" where it has, or where that is not known."""
    published = ROWS.get(" ".join(filter(None, (path, config, split))), rows)
    if rows == published:
        return ""
    what = "shots come from" if shots else "scored on rows of"
    return f"{what} a {'part of, or a stand-in for,' if rows < published else 'stand-in for'} {path}, split {split}: {rows:,} rows, of {published:,} published"


AVERAGES = {
    "coding": ("humaneval", "mbpp"),
    "math": ("gsm8k", "math"),
    "mmlu": ("mmlu",),
    "commonsense": COMMONSENSE,
    "openqa": ("nq_open", "triviaqa"),
}


def paper_averages(scores: dict[str, float]) -> dict[str, float]:
    """The columns of the paper's Table 1 from the tasks of its Tables 14 to 16: plain means, of those whose tasks are all there."""
    return {
        name: sum(scores[task] for task in tasks) / len(tasks)
        for name, tasks in AVERAGES.items()
        if all(task in scores for task in tasks)
    }


def average_measurements(measured: list[Measurement]) -> list[Measurement]:
    """The columns of the paper's Table 1, of which all tasks were measured."""
    main = {each.task: each.value for each in measured if each.settings.get("main") and each.domain == "all"}
    settings = {"truncated": 0.0, "prompt": "none", "seed": None, "data": "", "verified": False}
    return [
        Measurement(name, "all", 0, value, n=len(AVERAGES[name]), unit="tasks", task="paper_average", settings=settings)
        for name, value in paper_averages(main).items()
    ]
