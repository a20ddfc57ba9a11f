"""What a report shows: which stage's results, and the papers' numbers to stand beside them."""

from __future__ import annotations

from dataclasses import dataclass, field

from lit_long.config.ranges import Base, Count, CountOrNone, Finite


@dataclass
class MeasuredConfig:
    """One of our measurements, to stand beside a published column."""

    metric: str = ""
    domain: str = ""
    length: CountOrNone = 0  # 0 = the longest that was measured
    scale: Finite = 1.0  # 100 where the paper prints %


@dataclass
class PublishedConfig:
    """A table, or the points of a curve, of a paper: its numbers as printed, and which of our measurements are of the same kind."""

    title: str = ""
    source: str = ""
    rows: dict[str, dict[str, Finite]] = field(default_factory=dict)  # variant → column → number
    measured: dict[str, MeasuredConfig] = field(default_factory=dict)  # column → ours; other columns show the paper alone


@dataclass
class CurveConfig:
    """A paper's curve of retrieval by length, drawn thinly behind ours: its lengths as shares of its own model's context."""

    source: str = ""
    context: CountOrNone = 0  # of the model before it was extended, in tokens
    rows: dict[str, list[list[Finite]]] = field(default_factory=dict)  # variant → its corners: [tokens, %]


@dataclass
class LawConfig:
    """The context-length scaling law (LLaMA 2 Long, section 1.5): given, it is fitted to our losses by length, beside the paper's constants."""

    source: str = ""
    rows: dict[str, dict[str, Finite]] = field(default_factory=dict)  # the paper's model → alpha (tokens), beta, gamma (nats)


@dataclass
class BoundConfig:
    """The base of each variant of a sweep over bases: given, retrieval is shown by base, with the criterion of positions/bounds.py."""

    head_dim: Count = 64
    rows: dict[str, Base] = field(default_factory=dict)  # variant → base


@dataclass
class ReportConfig:
    """Which stage's results fill the table's rows, which stage is the reference row, and the paper's own numbers."""

    title: str = ""
    rows: str = "evaluate"
    reference: str | None = None
    paper_table: str = ""  # such as "5, 6": the tag paper.table of all runs
    paper_source: str = ""
    paper_length: CountOrNone = 0
    paper: dict[str, dict[str, Finite]] = field(default_factory=dict)  # variant → domain → perplexity
    published: list[PublishedConfig] = field(default_factory=list)  # further tables
    curve: CurveConfig = field(default_factory=CurveConfig)
    law: LawConfig = field(default_factory=LawConfig)
    bound: BoundConfig = field(default_factory=BoundConfig)
    notes: list[str] = field(default_factory=list)
