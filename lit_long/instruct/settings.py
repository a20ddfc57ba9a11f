"""The command's settings, and from them the run: which documents, who answers, who judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_long.config import TrackingConfig, UserError, nearest
from lit_long.config.ranges import Count, NotNegative, PositiveShare
from lit_long.data.synthetic import SYNTHETIC
from lit_long.data.token_store import Store
from lit_long.instruct.chunks import Items
from lit_long.instruct.endpoint import Endpoint, EndpointConfig
from lit_long.instruct.generators import Generator, Local
from lit_long.instruct.pipeline import PipelineConfig, Report, Run
from lit_long.instruct.rules import Rules

GENERATORS = ("model", "endpoint", "rules")
Load = Callable[..., tuple[Any, Any, Any]]  # (words of the command line, stage) → model, its tokenizer, its settings


@dataclass
class InstructCommand(PipelineConfig):
    """What the command line may say; ``data`` and ``model`` are composed elsewhere."""

    out: str = ""
    generator: str = "model"
    critic: str = "same"  # same · none · rules · endpoint · NAME
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    domains: list[str] = field(default_factory=list)
    temperature: NotNegative = 0.7
    top_p: PositiveShare = 0.9
    batch: Count = 4
    device: str = "auto"
    dtype: str = "auto"
    stage: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    root: str = ""

    def check(self) -> None:
        super().check()
        if not self.out:
            raise UserError("command line: out=DIR is missing")
        if self.generator not in GENERATORS:
            raise UserError(f"command line: generator: unknown {self.generator!r}{nearest(self.generator, GENERATORS)}")


def documents_of(store: Store, weights: dict[str, float], domains: list[str]) -> list[str]:
    """The domains whose documents are used: the named ones, else all that have a weight."""
    known = store.domains
    for name in domains:
        if name not in known:
            raise UserError(f"command line: domains: there is no domain {name!r}{nearest(name, known)}")
    return domains or [name for name in known if weights.get(name) and name not in SYNTHETIC]


def make_run(config: InstructCommand, words: dict[str, Any], store: Store, domains: list[str], load: Load, report: Report) -> Run:
    """The run that the command line means.

    Args:
        load: reads a model, as `stages.model.load_model` does.
    """

    def local(said: dict[str, Any], stage: str, temperature: float) -> Local:
        model, tokenizer, settings = load(said, stage)
        name = stage or settings.model.init
        return Local(name, name, model, tokenizer, settings.context, config.batch, temperature, config.top_p)

    def make(who: str) -> Generator:
        if who == "rules":
            return Rules()
        if who == "endpoint":
            return Endpoint(config.endpoint, config.temperature, config.top_p)
        return local({"model": words["model"]} if "model" in words else {}, config.stage, config.temperature)

    generator = make(config.generator)
    critic: Generator | None
    if config.critic == "none":
        critic = None
    elif config.critic == "same":
        critic = generator
    elif config.critic in GENERATORS:
        critic = make(config.critic)
    else:
        named = {"init": config.critic} if any(sign in config.critic for sign in "/:.") else {"option": config.critic}
        critic = local({"model": named}, "", 0.0)
    least = config.min_tokens or 2 * config.chunk_tokens
    items = Items(store, domains, config.seed, config.chunk_tokens, least, config.short)
    data = {"digest": store.manifest["digest"], "domains": domains}
    return Run(config, Path(config.out), items, generator, critic, data, report)
