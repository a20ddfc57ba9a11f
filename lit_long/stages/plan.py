"""From an experiment to the stages that have to run: which, in which order, and what identifies each.

Every point of the grid is a trial, and a trial is a chain of stages. A stage is what it is made of: its identity is the hash of
its identity settings, a version number of its kind and the identities of its inputs. Trials whose stages have the same identity
share them. Planning imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lit_long.checkpoints.external import External, open_external
from lit_long.config import (
    Layers,
    ModelConfig,
    SourceConfig,
    StageConfig,
    SweepConfig,
    UserError,
    compose_stage,
    compose_sweep,
    nearest,
    plain,
    project_root,
)
from lit_long.config.grid import points, variant_name
from lit_long.stages.folder import is_done
from lit_long.stages.identity import identity_settings
from lit_long.stages.mixture import settle_data
from lit_long.stages.settle import check_optimizer, settle
from lit_long.stages.shipped import SHIPPED, check_base, shipped_folder, stand_in

# Raised by hand when the meaning of a kind's result changes; results of older versions are then not taken for new ones.
KIND_VERSIONS = {"data": 2, "train": 1, "evaluate": 2}
TRAIN = (
    "context",
    "tokens",
    "tokens_per_update",
    "seed",
    "model",
    "position",
    "data",
    "curriculum",
    "adapter",
    "optim",
    "validation",
    "trainer",
)
RELEVANT = {"data": ("data",), "train": TRAIN, "evaluate": ("model", "position", "evaluation", "trainer")}
CORPUS = "corpus"


@dataclass(frozen=True)
class Stage:
    """One stage of the plan. ``store`` and ``parent`` are the folders of its inputs."""

    name: str
    config: StageConfig
    identity: str
    folder: Path
    store: Path | None = None
    parent: Path | None = None

    @property
    def done(self) -> bool:
        return is_done(self.folder)

    def settings(self) -> dict[str, Any]:
        """What means something for a stage of this kind, as plain values: enough to run it."""
        return {name: plain(getattr(self.config, name)) for name in ("kind", "parent", *RELEVANT[self.config.kind])}

    @property
    def inputs(self) -> list[Path]:
        return [folder for folder in (self.store, self.parent) if folder]


@dataclass
class Trial:
    """One point of the grid: its variant (the point without the seed), its seed and its stages by name."""

    variant: str
    seed: int
    point: dict[str, Any]
    stages: dict[str, Stage] = field(default_factory=dict)


@dataclass
class Plan:
    """All trials, the distinct stages in running order, and where everything goes."""

    sweep: SweepConfig
    root: Path
    trials: list[Trial]
    stages: list[Stage]
    key: str
    unseen: list[str] = field(default_factory=list)  # why weights or data could not be looked at; then nothing can run
    shipped: dict[str, str] = field(default_factory=dict)  # weights that came with lit-long, by the stages that they stand for
    left: list[Stage] = field(default_factory=list)  # not for this command to run (failures.py)

    @property
    def folder(self) -> Path:
        """The sweep's own folder: every distinct configuration has one."""
        return self.root / "runs" / self.sweep.experiment / self.key

    @property
    def chosen(self) -> list[Stage]:
        """The stages that this command goes through."""
        left = {stage.identity for stage in self.left}
        return [stage for stage in self.stages if stage.identity not in left]

    @property
    def title(self) -> str:
        """The experiment, and its scale if it has several."""
        return " ".join(filter(None, (self.sweep.experiment, self.sweep.scale)))

    def users(self, stage: Stage) -> list[Trial]:
        """The trials that this stage is part of. A trial may lack a stage that others have: its weights were shipped."""
        return [trial for trial in self.trials if (own := trial.stages.get(stage.name)) and own.identity == stage.identity]

    def label(self, stage: Stage) -> str:
        """The stage's name with what sets it apart: ``extend abf``, ``extend abf s1``, ``base``."""
        users = self.users(stage)
        words = [stage.name]
        for values, mine in (
            ({t.variant for t in self.trials}, {t.variant for t in users}),
            ({t.seed for t in self.trials}, {t.seed for t in users}),
        ):
            if len(values) > 1 and len(mine) == 1:
                words.append(f"s{min(mine)}" if isinstance(min(mine), int) else min(mine))
        return " ".join(words)


class Look:
    """Looks at weights and data, each once for all stages. A plan that is only shown goes on without those that are not here, a run does not."""

    def __init__(self, only_shown: bool) -> None:
        self.only_shown, self.seen, self.unseen = only_shown, {}, {}

    def at(self, look: Callable[..., Any], *arguments: Any) -> Any:
        """What ``look(*arguments)`` finds; None for what cannot be looked at."""
        key = f"{look.__name__}{arguments}"
        if key not in self.seen:
            try:
                self.seen[key] = look(*arguments)
            except UserError as error:
                if not self.only_shown:
                    raise
                self.seen[key], self.unseen[key] = None, str(error)
        return self.seen[key]


def make_plan(layers: Layers) -> Plan:
    """Expand an experiment. What is only shown (``dry_run``, ``show``) may name weights and data that are not here.

    Raises:
        UserError: anything in the settings that makes no sense; nothing has been written yet.
    """
    sweep, shared = compose_sweep(layers)
    if not sweep.stages:
        raise UserError(f"{layers.file}: the experiment has no 'stages'")
    root = Path(sweep.root).expanduser().resolve() if sweep.root else project_root()
    names = parents_first(sweep.stages, layers)
    check_base(sweep.base, sweep.stages, layers.file)
    cli_stages = layers.cli.get("stages") or {}
    look = Look(only_shown=sweep.dry_run or bool(sweep.show))

    def pretrained(init: str) -> tuple[ModelConfig, dict[str, Any]] | None:
        weights = look.at(open_external, init)
        return weights and (weights.shape, weights.position)

    trials: list[Trial] = []
    stages: dict[str, Stage] = {}
    sources: dict[str, SourceConfig] = {}  # one look at the files for all stages
    shipped: dict[str, str] = {}
    for point in points(sweep.grid, sweep.exclude, str(layers.file)):
        trial = Trial(variant_name(point), 0, point)
        given: dict[str, StageConfig] = {}  # stages that are not trained, since their weights were shipped
        origin: dict[str, str] = {}  # those weights, by the stages that descend from them
        for name in names:
            where = f"{layers.file}: stages.{name}"
            ancestor = sweep.stages[name].get("parent")
            start = given.get(ancestor)
            origin[name] = start.model.init if start else origin.get(ancestor, "")
            config = compose_stage(layers, shared, name, point, pretrained, origin[name])
            config = replace(config, parent=None) if start else config
            parent = trial.stages[config.parent] if config.parent else None
            own_position = "position" in layers.experiment["stages"][name] or "position" in cli_stages.get(name, {})
            config = replace(config, data=settle_data(config.data, where, sources, look.at))
            config = settle(config, parent.config if parent else start, own_position, where)
            trial.seed = config.seed
            if config.shipped and sweep.base == SHIPPED and (folder := shipped_folder(config)):
                given[name] = stand_in(config, folder, look.at(open_external, folder).shape, where)
                shipped[f"{name} s{config.seed}"] = folder
                continue
            if config.kind == "train":
                check_optimizer(config, where)
            corpus = place(root, CORPUS, replace(StageConfig(kind="data"), data=config.data))
            if parent and parent.store != corpus.folder and not config.data.corpus.tokenizer:
                raise UserError(
                    f"{where}: its data are not those of its parent, {config.parent}, so each would train a tokenizer of its own. Name the "
                    f"same data.sources and data.corpus for both (the weights may differ), or one tokenizer in data.corpus.tokenizer."
                )
            trial.stages.setdefault(CORPUS, corpus)
            init = look.at(open_external, config.model.init) if config.model.init and parent is None else None
            trial.stages[name] = place(root, name, config, corpus, parent, init)
        for stage in trial.stages.values():
            stages.setdefault(stage.identity, stage)
        trials.append(trial)
    for key in ("rows", "reference"):
        wanted = getattr(sweep.report, key)
        if wanted is not None and wanted not in names:
            raise UserError(f"{layers.file}: report.{key}: no stage {wanted!r}{nearest(wanted, names)}")
    return Plan(sweep, root, trials, list(stages.values()), sweep_key(sweep, trials), list(look.unseen.values()), shipped)


def parents_first(stages: dict[str, Any], layers: Layers) -> list[str]:
    """Stage names in the order they can run in."""
    order: list[str] = []
    chain: list[str] = []

    def visit(name: str) -> None:
        if name in chain:
            raise UserError(f"{layers.file}: stages {' → '.join([*chain, name])} are each other's parents")
        if name in order:
            return
        parent = stages[name].get("parent")
        if parent is not None and parent not in stages:
            raise UserError(f"{layers.file}: stages.{name}.parent: no stage {parent!r}{nearest(str(parent), stages)}")
        chain.append(name)
        if parent is not None:
            visit(parent)
        chain.pop()
        order.append(name)

    for name in stages:
        visit(name)
    return order


def place(
    root: Path,
    name: str,
    config: StageConfig,
    corpus: Stage | None = None,
    parent: Stage | None = None,
    init: External | None = None,
) -> Stage:
    """The stage with its identity and its folder. ``init``: weights made elsewhere that it starts from, known by their content."""
    content = {
        "kind": config.kind,
        "version": KIND_VERSIONS[config.kind],
        "inputs": [stage.identity for stage in (corpus, parent) if stage] + ([init.digest] if init else []),
        "settings": identity_settings(config),
    }
    identity = digest(content, 12)
    folder = root / "runs" / "stages" / f"{config.kind}-{identity}"
    return Stage(name, config, identity, folder, corpus.folder if corpus else None, parent.folder if parent else None)


def sweep_key(sweep: SweepConfig, trials: list[Trial]) -> str:
    rows = [[trial.variant, trial.seed, {name: stage.identity for name, stage in trial.stages.items()}] for trial in trials]
    return digest([sweep.experiment, rows, plain(sweep.report)], 8)


def digest(content: Any, length: int) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:length]
