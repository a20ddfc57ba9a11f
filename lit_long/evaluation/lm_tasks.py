"""lm-eval's tasks as tasks of ours: its prompts, shots, filters and metrics; our model, samples, resuming and statistics (extra `eval`).

lm-eval builds the requests of every document; `Harness` answers them; lm-eval scores each document, and the numbers become samples.
A score is the mean over documents, as lm-eval's own; a task of several parts (MMLU) also has one for each part.

Every request is made beforehand, and ``data`` of a score begins the digest of them all: prompts, shots, texts and right answers. So
nothing that lm-eval, the data set or the seed might change goes unnoticed when an evaluation is resumed or compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lit_long.config import UserError
from lit_long.evaluation.harness import Harness
from lit_long.evaluation.lm_loading import Wanted, described, load_parts
from lit_long.evaluation.lm_specs import SPECS, VERIFIED, Spec
from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.registry import file_digest, is_task_file, read_task_file
from lit_long.evaluation.samples import Key
from lit_long.evaluation.statistics import geometric, mean, share
from lit_long.evaluation.subject import Subject
from lit_long.evaluation.task import Sample, Task, by

AT_ONCE = 64  # documents that are answered before their samples are written
ROUGE, ROUGE_GEO = ("rouge1", "rouge2", "rougeL"), "rouge_geo"


@dataclass(frozen=True)
class Item:
    """One document: lm-eval's task, the document and its requests."""

    task: Any
    requests: list[Any]
    reference: Any


class HarnessTask(Task):
    """A task of lm-eval's by its name in `lm_specs`, by lm-eval's own, or by the path of a task file.

    Args:
        lengths: of prompts: the most tokens of a data set's, exactly so many (with the answer) of a generated one.

    Raises:
        Unavailable: the data set is not there, or the task runs code and may not.
        UserError: it is damaged or has no right answers, or lm-eval cannot build the task.
    """

    def __init__(self, name: str, subject: Subject, lengths: list[int], wanted: Wanted) -> None:
        file = read_task_file(name, "tasks") if is_task_file(name) else None
        self.name = file.name if file else name
        self.code = {"code": file_digest(file)} if file else {}
        self.wanted = wanted
        self.spec = SPECS.get(name) or Spec("", {"all": (self.name,)})
        self.verified = None if file else name in VERIFIED  # of a user's own task nothing is claimed
        self.items: dict[Key, Item] = {}
        versions = set()
        for domain, length, task, requests, reference in load_parts(name, self.spec, subject, lengths, wanted):
            index = sum(1 for key in self.items if (key.domain, key.length) == (domain, length))
            self.items[Key(domain, length, index)] = Item(task, requests, reference)
            versions.add(str(task.VERSION))
        if not self.items:
            raise UserError(f"{name}: its data set has no documents")
        shots = next(iter(self.items.values())).task.config.num_fewshot or 0
        self.shots = self.spec.shots if self.spec.shots is not None else shots
        self.prompt = f"lm-eval's, version {', '.join(sorted(versions))}; {self.shots} shots"
        self.digest = digest(self.items)

    def settings(self) -> dict[str, Any]:
        return {"data": self.digest, "shots": self.shots, "count": self.wanted.count, "seed": self.wanted.seed} | self.code

    def keys(self) -> list[Key]:
        return list(self.items)

    def measure(self, subject: Subject, keys: list[Key]) -> Iterator[Sample]:
        longest = None if self.spec.made else keys[0].length
        harness = Harness(subject, longest)
        for start in range(0, len(keys), AT_ONCE):
            group = keys[start : start + AT_ONCE]
            cuts = answer(harness, [request for key in group for request in self.items[key].requests])
            for key in group:
                item = self.items[key]
                cut = any(cuts[id(request)] for request in item.requests)
                yield key, {"reference": item.reference, "truncated": cut, **scored(self.name, item)}

    def scores(self, samples: list[dict[str, Any]]) -> list[Measurement]:
        rows = []
        for (length,), group in by(samples, "length"):
            domains = [domain for (domain,), _ in by(group, "domain")]
            for domain in dict.fromkeys(["all", *domains]):
                own = [each["metrics"] for each in group if domain in ("all", each["domain"])]
                found = statistics(own)
                for metric, values in found.items():
                    main = metric == (self.spec.metric or (ROUGE_GEO if ROUGE_GEO in found else next(iter(found))))
                    settings = {"shots": self.shots, "verified": self.verified, "main": main}
                    rows.append(Measurement(metric, domain, length, **values, unit="documents", settings=settings))
        return rows


def answer(harness: Harness, requests: list[Any]) -> dict[int, bool]:
    """Give every request its answer; whether each prompt was cut, by the request's id."""
    cuts: dict[int, bool] = {}
    for kind in dict.fromkeys(request.request_type for request in requests):
        own = [request for request in requests if request.request_type == kind]
        before = len(harness.cuts)
        answers = getattr(harness, kind)(own)
        for request, found in zip(own, answers, strict=True):
            request.resps, request.filtered_resps = [found], {}
        # A rolling likelihood has several windows, none of which is cut.
        new = harness.cuts[before:] if kind != "loglikelihood_rolling" else [False] * len(own)
        cuts |= {id(request): cut for request, cut in zip(own, new, strict=True)}
    return cuts


def scored(name: str, item: Item) -> dict[str, Any]:
    """lm-eval's numbers for one answered document, and what was answered. The first of several filters gives its metrics their plain names."""
    metrics: dict[str, float] = {}
    doc = item.requests[0].doc
    for place, pipeline in enumerate(item.task._filters):
        pipeline.apply(item.requests)
        try:
            found = item.task.process_results(doc, [request.filtered_resps[pipeline.name] for request in item.requests])
        except Exception as error:  # whatever the task's own code does with a document of another form
            raise UserError(f"{name}, document {item.requests[0].doc_id}: lm-eval cannot score it: {described(error)}") from error
        for metric, value in found.items():
            if metric.isdigit():  # RULER's are called by lengths, -1 for those that the document does not have
                if int(metric) != doc["max_length"]:
                    continue
                metric = "score"
            if not isinstance(value, int | float) and not hasattr(value, "item"):
                raise UserError(
                    f"{name}: its {metric} is no number of one document, so it cannot be sampled here; run lm-eval itself"
                )
            metrics[metric if not place else f"{metric},{pipeline.name}"] = float(value)
    return {"metrics": metrics, "answers": [request.resps[0] for request in item.requests]}


def statistics(samples: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Value, standard error and interval of every metric; of ROUGE-1, -2 and -L also the geometric mean of their means (SCROLLS)."""
    found = {}
    for metric in samples[0]:
        values = [each[metric] for each in samples]
        found[metric] = share([bool(value) for value in values]) if set(values) <= {0.0, 1.0} else mean(values)
    if set(ROUGE) <= samples[0].keys():
        found[ROUGE_GEO] = geometric([[each[metric] for metric in ROUGE] for each in samples])
    return found


def digest(items: dict[Key, Item]) -> str:
    """Of all requests and right answers."""
    found = hashlib.sha256()
    for key, item in items.items():
        asked = [[request.request_type, repr(request.args)] for request in item.requests]
        found.update(json.dumps([list(key), asked, repr(item.reference)]).encode())
    return found.hexdigest()
