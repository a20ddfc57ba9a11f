"""A task as a user writes one in a folder of their own: the share of tokens that the model finds the likeliest."""

from __future__ import annotations

from lit_long.evaluation.measurement import Measurement
from lit_long.evaluation.samples import Key
from lit_long.evaluation.statistics import share
from lit_long.evaluation.task import Task, by


class Likeliest(Task):
    name = "likeliest"
    prompt = "own/1"

    def __init__(self, asked):
        self.texts, self.data, self.domain = asked.texts, asked.data, asked.haystack
        self.lengths, self.count = asked.size.lengths, asked.size.samples

    def settings(self):
        return {"data": self.data, "count": self.count}

    def keys(self):
        return [Key(self.domain, length, index) for length in self.lengths for index in range(self.count)]

    def measure(self, evaluated, keys):
        documents = self.texts.documents(self.domain, "validation")
        for key in keys:
            prompt = documents[key.index % len(documents)][: key.length - 1].tolist()
            ((_, written),) = evaluated.write([prompt], 1)
            yield key, {"written": written, "right": written != ""}

    def scores(self, samples):
        return [
            Measurement("written", domain, length, **share([each["right"] for each in group]))
            for (domain, length), group in by(samples, "domain", "length")
        ]


class NoTask:
    pass
