"""From an experiment to the stages that have to run: which, in which order, and what identifies each.

Every point of the grid is a trial, and a trial is a chain of stages. A stage is what it is made of: its identity is the hash of
its identity settings, a version number of its kind and the identities of its inputs. Trials whose stages have the same identity
share them. Planning imports no torch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lit_long.config import (
    Layers,
    StageConfig,
    SweepConfig,
    TrainerConfig,
    UserError,
    compose_stage,
    compose_sweep,
    identity_fields,
    nearest,
    plain,
    project_root,
)
from lit_long.data.corpus import fingerprint
from lit_long.positions import settings as position_settings
from lit_long.stages.folder import is_done

# Raised by hand when the meaning of a kind's result changes; results of older versions are then not taken for new ones.
KIND_VERSIONS = {"data": 1, "train": 1, "evaluate": 1}
TRAIN = (
    "context",
    "tokens",
    "tokens_per_update",
    "seed",
    "model",
    "position",
    "data",
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

    @property
    def folder(self) -> Path:
        """The sweep's own folder: every distinct configuration has one."""
        return self.root / "runs" / self.sweep.experiment / self.key

    def label(self, stage: Stage) -> str:
        """The stage's name with what sets it apart: ``extend abf``, ``extend abf s1``, ``base``."""
        users = [trial for trial in self.trials if trial.stages[stage.name].identity == stage.identity]
        words = [stage.name]
        for values, mine in (
            ({t.variant for t in self.trials}, {t.variant for t in users}),
            ({t.seed for t in self.trials}, {t.seed for t in users}),
        ):
            if len(values) > 1 and len(mine) == 1:
                words.append(f"s{min(mine)}" if isinstance(min(mine), int) else min(mine))
        return " ".join(words)


def make_plan(layers: Layers) -> Plan:
    """Expand an experiment.

    Raises:
        UserError: anything in the settings that makes no sense; nothing has been written yet.
    """
    sweep, shared = compose_sweep(layers)
    if not sweep.stages:
        raise UserError(f"{layers.file}: the experiment has no 'stages'")
    root = Path(sweep.root).expanduser().resolve() if sweep.root else project_root()
    names = parents_first(sweep.stages, layers)
    trials: list[Trial] = []
    stages: dict[str, Stage] = {}
    for values in itertools.product(*sweep.grid.values()):
        point = dict(zip(sweep.grid, values, strict=True))
        trial = Trial(variant_name(point), 0, point)
        for name in names:
            config = settle(
                compose_stage(layers, shared, name, point),
                trial,
                layers.experiment["stages"][name],
                f"{layers.file}: stages.{name}",
            )
            trial.seed = config.seed
            corpus = place(root, CORPUS, replace(StageConfig(kind="data"), data=config.data))
            parent = trial.stages[config.parent] if config.parent else None
            trial.stages.setdefault(CORPUS, corpus)
            trial.stages[name] = place(root, name, config, corpus, parent)
        for stage in trial.stages.values():
            stages.setdefault(stage.identity, stage)
        trials.append(trial)
    check_report(sweep, names, layers)
    return Plan(sweep, root, trials, list(stages.values()), sweep_key(sweep, trials))


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


def variant_name(point: dict[str, Any]) -> str:
    """``abf``, or ``position=abf optim.lr=0.001`` when there are several axes besides the seed."""
    axes = {key: value for key, value in point.items() if key != "seed"}
    if len(axes) == 1:
        return str(*axes.values())
    return " ".join(f"{key}={value}" for key, value in axes.items()) or "default"


def settle(config: StageConfig, trial: Trial, own: dict[str, Any], where: str) -> StageConfig:
    """Checks, and what depends on the machine or on the parent: precision, the model that an evaluation is of, ``base: auto``."""
    if config.kind not in ("train", "evaluate"):
        raise UserError(f"{where}.kind must be train or evaluate, not {config.kind!r}")
    if config.kind == "evaluate":
        if config.parent is None:
            raise UserError(f"{where}: an evaluate stage needs a parent, the stage whose model it measures")
        parent = trial.stages[config.parent].config
        position = config.position if "position" in own else parent.position
        config = replace(config, model=parent.model, position=position, seed=parent.seed)
    evaluation = config.evaluation
    read = max([*evaluation.lengths, *evaluation.retrieval_lengths], default=config.context)
    longest = config.context if config.kind == "train" else read
    position = position_settings(config.position, config.model.head_dim, where, longest)
    config = replace(config, position=position, trainer=replace(config.trainer, precision=precision(config.trainer)))
    if config.kind == "train":
        check_train(config, trial, where)
    return config


def check_train(config: StageConfig, trial: Trial, where: str) -> None:
    if config.parent and trial.stages[config.parent].config.kind != "train":
        raise UserError(f"{where}.parent must be a train stage, not {config.parent!r}")
    for name in ("context", "tokens", "tokens_per_update"):
        if getattr(config, name) < 1:
            raise UserError(f"{where}.{name} must be at least 1 token, not {getattr(config, name)}")
    if config.tokens_per_update % config.context:
        raise UserError(
            f"{where}: tokens_per_update={config.tokens_per_update} must be a multiple of context={config.context}, whole sequences"
        )


def precision(trainer: TrainerConfig) -> str:
    """``auto`` settled: bf16 where the hardware computes it natively, so that the identity says what was computed."""
    known = ("32-true", "bf16-mixed", "bf16-true")
    if trainer.precision in known:
        return trainer.precision
    if trainer.precision != "auto":
        raise UserError(f"trainer.precision must be auto, {', '.join(known)}, not {trainer.precision!r}")
    if trainer.accelerator != "cpu":
        return "bf16-mixed"
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        flags = []
    return "bf16-mixed" if {"avx512_bf16", "amx_bf16"} & set(flags) else "32-true"


def place(root: Path, name: str, config: StageConfig, corpus: Stage | None = None, parent: Stage | None = None) -> Stage:
    """The stage with its identity and its folder."""
    content = {
        "kind": config.kind,
        "version": KIND_VERSIONS[config.kind],
        "inputs": [stage.identity for stage in (corpus, parent) if stage],
        "settings": identity_settings(config),
    }
    identity = digest(content, 12)
    folder = root / "runs" / "stages" / f"{config.kind}-{identity}"
    return Stage(name, config, identity, folder, corpus.folder if corpus else None, parent.folder if parent else None)


def identity_settings(config: StageConfig) -> dict[str, Any]:
    """The settings that a stage of this kind computes with; its inputs' identities cover the rest."""
    if config.kind == "data":
        return {"corpus": identity_fields(config.data.corpus), "sources": fingerprint(config.data.corpus)}
    settings = {name: identity_fields(getattr(config, name)) for name in ("model", "position")}
    if config.kind == "evaluate":
        return settings | {"evaluation": identity_fields(config.evaluation)}
    mixture = {
        "weights": {k: w for k, w in config.data.weights.items() if w},
        "mask_documents": config.data.mask_documents,
    }
    plain_values = {name: getattr(config, name) for name in ("context", "tokens", "tokens_per_update", "seed")}
    return settings | plain_values | {"data": mixture, "optim": plain(config.optim), "trainer": identity_fields(config.trainer)}


def sweep_key(sweep: SweepConfig, trials: list[Trial]) -> str:
    rows = [[trial.variant, trial.seed, {name: stage.identity for name, stage in trial.stages.items()}] for trial in trials]
    return digest([sweep.experiment, rows, plain(sweep.report)], 8)


def digest(content: Any, length: int) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:length]


def check_report(sweep: SweepConfig, names: list[str], layers: Layers) -> None:
    for key in ("rows", "reference"):
        name = getattr(sweep.report, key)
        if name is not None and name not in names:
            raise UserError(f"{layers.file}: report.{key}: no stage {name!r}{nearest(name, names)}")
