"""From an experiment to the stages that have to run: which, in which order, and what identifies each.

Every point of the grid is a trial, and a trial is a chain of stages. A stage is what it is built of: its identity is the hash of
its identity settings, a version number of its kind and the identities of its inputs. Trials whose stages have the same identity
share them. Planning imports no torch.

A stage is read from its archive (archive.py) where its own folder is not done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_long.config import (
    Command,
    Composer,
    SourceConfig,
    StageConfig,
    SweepConfig,
    UserError,
    compose_sweep,
    differing,
    nearest,
    plain,
    project_root,
)
from lit_long.config.checkpoints import CHECKPOINTS, STEP
from lit_long.config.command import COMMAND_LINE, DEFAULT_OPTIONS, option_pick
from lit_long.config.grid import Point, points, settings_of_point, variant_name
from lit_long.config.mesh import ROUNDED_UPDATES
from lit_long.config.updates import first_update
from lit_long.pretrained import PretrainedWeights, open_pretrained
from lit_long.processor import note_on_bf16
from lit_long.stages.archive import SHIPPED, check_base, find_archive, has_adapter, has_weights, shipped_folder, stand_in
from lit_long.stages.axes import Axes, named_keys
from lit_long.stages.folder import ERROR, is_archived, is_done
from lit_long.stages.identity import RELEVANT, digest, stage_identity
from lit_long.stages.identity_0_1 import identity_0_1, sweep_key_0_1
from lit_long.stages.resolve import FROM_PARENT, check_optimizer, resolve_data, resolve_stage

CORPUS = "corpus"


@dataclass(frozen=True)
class Stage:
    """One stage of the plan. ``store`` and ``parent`` are the folders of its inputs.

    ``folder`` is named after the identity; after that of 0.1 where 0.1 began the stage. It is below runs/, or an archive.
    """

    name: str
    config: StageConfig
    identity: str
    folder: Path
    store: Path | None = None
    parent: Path | None = None
    identity_0_1: str = ""

    @property
    def done(self) -> bool:
        return is_done(self.folder)

    @property
    def failed(self) -> bool:
        """Whether it was begun and ended without a result. One that was skipped, because it needs one that failed, was not."""
        return not self.done and (self.folder / ERROR).is_file()

    @property
    def archived(self) -> bool:
        return is_archived(self.folder)

    @property
    def key(self) -> str:
        """The identity that its folder and its runs in MLflow go by."""
        return self.folder.name.partition("-")[2]

    def settings(self) -> dict[str, Any]:
        """What means something for a stage of this kind, as plain values: enough to run it."""
        return {name: plain(getattr(self.config, name)) for name in ("kind", "parent", *RELEVANT[self.config.kind])}

    @property
    def names(self) -> list[str]:
        """What its folder, or its archive, may be called."""
        return [self.folder.name, *(f"{self.config.kind}-{each}" for each in (self.identity, self.identity_0_1) if each)]

    @property
    def inputs(self) -> list[Path]:
        return [folder for folder in (self.store, self.parent) if folder]

    def read_from(self, archives: dict[Path, Path], inputs: dict[Path, Path]) -> Stage:
        """The stage read from its archive where ``archives`` has one for its folder, and its inputs from theirs."""
        inputs = inputs if self.folder in archives else archives
        store, parent = (inputs.get(folder, folder) for folder in (self.store, self.parent))
        return replace(self, folder=archives.get(self.folder, self.folder), store=store, parent=parent)


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
    notes: list[str] = field(default_factory=list)  # what to know before it runs, for instance of axes (axes.py)
    left: list[Stage] = field(default_factory=list)  # not for this command to run (`only_failed`)

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
        return self.trials_by_stage.get((stage.name, stage.identity), [])

    @cached_property
    def trials_by_stage(self) -> dict[tuple[str, str], list[Trial]]:
        """By a stage's name in the trial and its identity."""
        found: dict[tuple[str, str], list[Trial]] = {}
        for trial in self.trials:
            for name, stage in trial.stages.items():
                found.setdefault((name, stage.identity), []).append(trial)
        return found

    @cached_property
    def variants(self) -> int:
        """How many there are."""
        return len({trial.variant for trial in self.trials})

    @cached_property
    def several(self) -> tuple[bool, bool]:
        """Whether there are several variants, and several seeds."""
        return self.variants > 1, len({trial.seed for trial in self.trials}) > 1

    @cached_property
    def alike_in_all(self) -> dict[str, str]:
        return self.alike(self.trials)

    def label(self, stage: Stage) -> str:
        """The stage's name with what sets it apart: ``extend abf``, ``extend abf s1``, ``base``; of one that some variants share what these have in
        common, ``base nope``, or else their names. No two stages have the same."""
        return self.labels[stage.name, stage.identity]

    @cached_property
    def labels(self) -> dict[tuple[str, str], str]:
        """Labels by a stage's name in the trial and its identity."""
        found: dict[tuple[str, str], str] = {}
        for way in (self.what_they_share, self.their_names):
            times = Counter(found.values())
            for (name, identity), users in self.trials_by_stage.items():
                if times[found.get((name, identity))] != 1:
                    seeds = {trial.seed for trial in users}
                    seed = f"s{min(seeds)}" if len(seeds) == 1 and self.several[1] else ""
                    found[name, identity] = " ".join(filter(None, (name, way(users), seed)))
        times = Counter(found.values())
        return {key: label if times[label] == 1 else f"{label} {key[1]}" for key, label in found.items()}

    def what_they_share(self, users: list[Trial]) -> str:
        """What tells the variants of these trials from others: the values of axes that they have in common."""
        mine = {trial.variant for trial in users}
        if len(mine) == 1:
            return users[0].variant if self.several[0] else ""
        axes = self.alike(users).keys() - self.alike_in_all.keys()
        shared = {axis: users[0].point[axis] for axis in self.sweep.grid if axis in axes and axis in users[0].point}
        return variant_name(shared, self.sweep.grid) if shared else self.their_names(users)

    def their_names(self, users: list[Trial]) -> str:
        """The first two variants of these trials, unless they are all."""
        mine = list(dict.fromkeys(trial.variant for trial in users))
        if len(mine) == self.variants:
            return ""
        return ", ".join(mine[:2]) + (f" +{len(mine) - 2}" if len(mine) > 2 else "")

    @staticmethod
    def alike(trials: list[Trial]) -> dict[str, str]:
        """The axes, but for the seed, at which all the trials have one value, and it."""
        points = [trial.point for trial in trials]
        values = {axis: {repr(point.get(axis)) for point in points} for axis in points[0] if axis != "seed"}
        return {axis: min(several) for axis, several in values.items() if len(several) == 1}


class Prober:
    """Reads what there is to know about weights and data, each once for all stages. A plan that is only shown goes on without those that are not
    here, a run does not."""

    def __init__(self, only_shown: bool) -> None:
        self.only_shown, self.seen, self.unseen = only_shown, {}, {}

    def probe(self, read: Callable[..., Any], *arguments: Any) -> Any:
        """What ``read(*arguments)`` returns; None for what cannot be read."""
        key = f"{read.__name__}{arguments}"
        if key not in self.seen:
            try:
                self.seen[key] = read(*arguments)
            except UserError as error:
                if not self.only_shown:
                    raise
                self.seen[key], self.unseen[key] = None, str(error)
        return self.seen[key]


def make_plan(command: Command) -> Plan:
    """Expand an experiment. What is only shown (``dry_run``, ``show``) may name weights and data that are not here.

    Raises:
        UserError: anything in the settings that makes no sense; nothing has been written yet.
    """
    sweep, shared = compose_sweep(command)
    if not sweep.stages:
        raise UserError(f"{command.file}: the experiment has no 'stages'")
    root = Path(sweep.root).expanduser().resolve() if sweep.root else project_root()
    names = parents_first(sweep.stages, command)
    check_base(sweep.base, sweep.stages, command.file)
    prober = Prober(only_shown=sweep.dry_run or bool(sweep.show))

    def pretrained(init: str) -> PretrainedWeights | None:
        return prober.probe(open_pretrained, init)

    composer = Composer(command, sweep.grid, shared, pretrained)
    builder = StageBuilder(command, sweep, root, prober, composer)
    trials: list[Trial] = []
    stages: dict[str, Stage] = {}
    shipped: dict[str, str] = {}  # weights that came with lit-long, by the stages that they stand for
    axes = Axes(composer, names, sweep.grid)
    chosen = list(points(sweep.grid, sweep.exclude, str(command.file), axes.keep, command.experiment.get("grid")))
    notes = axes.notes()  # refuses an axis that applies nowhere, before variants are named by it
    if not chosen:
        raise UserError(f"{command.file}: exclude leaves no point of the grid")
    refuse_replaced(command, sweep.grid, chosen)
    written = {settings.get("parent") for settings in sweep.stages.values()}
    for point, built in without_unused((builder.build_all(names, point) for point in chosen), written):
        trial = Trial(variant_name(point, sweep.grid), 0, point)
        for name, one in built.items():
            trial.seed = one.config.seed
            if one.stage is None:
                shipped[f"{name} s{one.config.seed}"] = one.config.model.init
            else:
                if all(stage.identity != one.corpus.identity for stage in trial.stages.values()):
                    own = f"{CORPUS}_{name}" if CORPUS in trial.stages else CORPUS
                    trial.stages[own] = replace(one.corpus, name=own)
                trial.stages[name] = one.stage
        for stage in trial.stages.values():
            stages.setdefault(stage.identity, stage)
        trials.append(trial)
    report = sweep.report
    for key, wanted in (
        ("rows", report.rows),
        *(("rows_also", name) for name in report.rows_also),
        ("reference", report.reference),
    ):
        if wanted is not None and wanted not in names:
            raise UserError(f"{command.file}: report.{key}: no stage {wanted!r}{nearest(wanted, names)}")
    # Data first: what cannot be read is found before a model is trained that would then wait for it.
    order = sorted(stages.values(), key=lambda stage: stage.config.kind != "data")
    found = {stage.folder: archive for stage in order if not stage.done and (archive := find_archive(stage.names))}
    archives, lacking = select_archives(found, order)
    for trial in trials:
        trial.stages = {name: stage.read_from(archives, found) for name, stage in trial.stages.items()}
    order = [stage.read_from(archives, found) for stage in order]
    for stage in order:
        check_branch(stage, order)
    key = sweep_key(sweep, trials, root)
    notes += [seen.note for seen in prober.seen.values() if isinstance(seen, PretrainedWeights) and seen.note]
    starts = {stage.config.model.init for stage in order if stage.config.kind != "data" and not stage.parent and not stage.done}
    notes += [
        text for init in sorted(starts - {""}) if (weights := prober.probe(open_pretrained, init)) and (text := weights.pending)
    ]
    trained = [stage for stage in order if stage.config.kind == "train" and not stage.done]
    if rounded := dict.fromkeys(stage.name for stage in trained if stage.config.trainer.precision == "bf16-true"):
        notes.append(f"{', '.join(rounded)}: {ROUNDED_UPDATES}")
    for setting in dict.fromkeys(bf16_on_cpu(stage.config) for stage in order if not stage.done):
        if setting and (note := note_on_bf16(setting)):
            notes.append(f"{note}; {setting}=32-true avoids it")
    return Plan(sweep, root, trials, order, key, list(prober.unseen.values()), shipped, notes + lacking)


def refuse_replaced(command: Command, grid: dict[str, list[Any]], chosen: list[Point]) -> None:
    """Raise UserError for an option of the command line that no stage would have, since every point names another for its group."""
    for group in DEFAULT_OPTIONS:
        option = option_pick(command.cli.get(group))
        if option is None or group in grid:
            continue
        named = (group, f"{group}.option")
        if all(any(key in named for key, _ in settings_of_point(point)) for point in chosen):
            axes = [f"grid.{key}" for key, values in grid.items() if set(named) & set(named_keys(values))]
            raise UserError(
                f"{COMMAND_LINE}: {group}={option} would change nothing, since every point of {' and '.join(axes)} names its own {group}. Add a point "
                f"with {group}: {option} to {command.file}, or to a copy of it"
            )


def bf16_on_cpu(config: StageConfig) -> str:
    """The key that lets a stage compute in bf16 on a CPU, or ""."""
    if config.kind == "data" or config.trainer.accelerator != "cpu":
        return ""
    key = "trainer.precision" if config.kind == "train" else "evaluation.precision"
    precision = config.trainer.precision if config.kind == "train" else config.evaluation.precision
    return "" if precision == "32-true" else key


@dataclass(frozen=True, eq=False)
class BuiltStage:
    """A stage at a point of the grid; without ``stage`` it is not trained, since its weights were shipped: ``config`` names them."""

    config: StageConfig
    origin: str  # the shipped weights that it is, or descends from, if any
    parent: str | None = None  # as the experiment calls it
    stage: Stage | None = None
    corpus: Stage | None = None


class StageBuilder:
    """Builds the stages of all points: each once for all points that say the same to it and to those before it."""

    def __init__(self, command: Command, sweep: SweepConfig, root: Path, prober: Prober, composer: Composer) -> None:
        self.command, self.sweep, self.root, self.prober, self.composer = command, sweep, root, prober, composer
        self.built: dict[tuple[str, str, BuiltStage | None], BuiltStage] = {}
        self.corpora: dict[str, Stage] = {}
        self.sources: dict[str, SourceConfig] = {}  # one look at the files for all stages
        cli_stages = command.cli.get("stages") or {}
        self.own = {
            name: [key for key in FROM_PARENT if key in stage or key in cli_stages.get(name, {})]
            for name, stage in command.experiment["stages"].items()
        }

    def build_all(self, names: list[str], point: Point) -> tuple[Point, dict[str, BuiltStage]]:
        """The point and its stages, parents first."""
        built: dict[str, BuiltStage] = {}
        for name in names:
            built[name] = self.build(name, point, built)
        return point, built

    def build(self, name: str, point: Point, built: dict[str, BuiltStage]) -> BuiltStage:
        """Stage ``name`` at the point whose stages before it are ``built``."""
        said = self.composer.said(name, point)
        parent = self.composer.raw(name, "parent", said) if "parent" in said else self.sweep.stages[name].get("parent")
        if parent is not None and parent not in built:
            raise UserError(
                f"{self.command.file}: stages.{name}.parent={parent}: no stage that comes before it{nearest(str(parent), built)}"
            )
        start = built.get(parent)
        key = (name, repr(said), start)
        if key not in self.built:
            self.built[key] = self.build_anew(name, point, start)
        return self.built[key]

    def build_anew(self, name: str, point: dict[str, Any], start: BuiltStage | None) -> BuiltStage:
        where, sweep, prober = f"{self.command.file}: stages.{name}", self.sweep, self.prober
        origin = start.origin if start else ""
        config = self.composer.stage(name, point, origin)
        named = config.parent
        given = start is not None and start.stage is None
        config = replace(config, parent=None) if given else config
        parent = start.stage if start and config.parent else None
        config = replace(config, data=resolve_data(config.data, where, self.sources, prober.probe))
        axes = [f"{key}." for key, _ in settings_of_point(point)]
        own = [
            key for key in FROM_PARENT if key in self.own[name] or any(axis.startswith(f"stages.{name}.{key}.") for axis in axes)
        ]
        config = resolve_stage(config, start.config if start else None, own, where)
        if config.shipped and sweep.base == SHIPPED and (folder := shipped_folder(config)):
            return BuiltStage(stand_in(config, folder, prober.probe(open_pretrained, folder).shape, where), folder, named)
        if config.kind == "train":
            check_optimizer(config, where)
        corpus = self.corpus(config)
        if parent and parent.store != corpus.folder and not config.data.corpus.tokenizer:
            raise UserError(
                f"{where}: its data are not those of its parent, {config.parent}, so each would train a tokenizer of its own. Name the "
                f"same data.sources and data.corpus for both (the weights may differ), or one tokenizer in data.corpus.tokenizer."
            )
        init = prober.probe(open_pretrained, config.model.init) if config.model.init and parent is None else None
        return BuiltStage(config, origin, named, place_stage(self.root, name, config, corpus, parent, init), corpus)

    def corpus(self, config: StageConfig) -> Stage:
        """The stage that prepares the data of another."""
        if (key := repr(config.data)) not in self.corpora:
            self.corpora[key] = place_stage(self.root, CORPUS, replace(StageConfig(kind="data"), data=config.data))
        return self.corpora[key]


def without_unused(
    points: Iterable[tuple[Point, dict[str, BuiltStage]]], written: set[str | None]
) -> Iterator[tuple[Point, dict[str, BuiltStage]]]:
    """The stages of each point but those that others start from elsewhere, and here none does: an axis over ``stages.NAME.parent`` goes round them.

    Args:
        written: the parents that the experiment's stages name; the points may all be such that go round one.
    """
    points = list(points)
    parents = written | {one.parent for _, built in points for one in built.values()}
    for point, built in points:
        used: set[str | None] = set()
        for name in reversed(built):  # parents come first
            if name in used or name not in parents:
                used |= {name, built[name].parent}
        yield point, {name: one for name, one in built.items() if name in used}


def parents_first(stages: dict[str, Any], command: Command) -> list[str]:
    """Stage names in the order they can run in."""
    order: list[str] = []
    chain: list[str] = []

    def visit(name: str) -> None:
        if name in chain:
            raise UserError(f"{command.file}: stages {' → '.join([*chain, name])} are each other's parents")
        if name in order:
            return
        parent = stages[name].get("parent")
        if parent is not None and parent not in stages:
            raise UserError(f"{command.file}: stages.{name}.parent: no stage {parent!r}{nearest(str(parent), stages)}")
        chain.append(name)
        if parent is not None:
            visit(parent)
        chain.pop()
        order.append(name)

    for name in stages:
        visit(name)
    return order


def place_stage(
    root: Path,
    name: str,
    config: StageConfig,
    corpus: Stage | None = None,
    parent: Stage | None = None,
    init: PretrainedWeights | None = None,
) -> Stage:
    """The stage with its identity and its folder. ``init``: pretrained weights that it starts from, known by their content."""
    inputs = [stage for stage in (corpus, parent) if stage]
    digests = [init.digest] if init else []
    identity = stage_identity(config, [*(stage.identity for stage in inputs), *digests])
    former = identity_0_1(config, [*(stage.identity_0_1 for stage in inputs), *digests])
    folder, begun = (root / "runs" / "stages" / f"{config.kind}-{name}" for name in (identity, former))
    if former and begun.is_dir() and not folder.is_dir():
        folder = begun
    return Stage(name, config, identity, folder, corpus.folder if corpus else None, parent.folder if parent else None, former)


def select_archives(archives: dict[Path, Path], stages: list[Stage]) -> tuple[dict[Path, Path], list[str]]:
    """Those of ``archives`` (by the folders that they stand for) that hold what the stages to run start from; and lines about the others.

    An archive holds no data, and not always weights: then the stage runs again.

    Args:
        stages: inputs first.
    """
    found, lines = dict(archives), []
    for stage in reversed(stages):
        if stage.done or stage.folder in found:
            continue
        found.pop(stage.store, None)
        lacks = "checkpoints" if first_update(stage.config) else "weights"
        if stage.parent in found and (lacks == "checkpoints" or not has_weights(found[stage.parent])):
            archive = found.pop(stage.parent)
            if lacks == "weights" and has_adapter(archive):
                lines.append(
                    f"{archive} holds an adapter, and stages that are to run start from it: the stage's weights are made again from it"
                )
            else:
                lines.append(
                    f"{archive} holds no {lacks}, and stages that are to run start from them: the stage itself runs again"
                )
    return found, lines


def check_branch(stage: Stage, stages: list[Stage]) -> None:
    """Raise UserError for a stage that starts from within the run of a finished one that kept no checkpoint there."""
    if stage.done or not (first := first_update(stage.config)):
        return
    parent = next(each for each in stages if each.folder == stage.parent)
    point = parent.folder / CHECKPOINTS / STEP.format(first)
    if parent.done and not point.exists():
        raise UserError(
            f"{point}: is not there, and {stage.name} starts from it: {parent.name} was trained without it among trainer.milestones. Delete "
            f"{parent.folder} to train it again"
        )


def sweep_key(sweep: SweepConfig, trials: list[Trial], root: Path) -> str:
    """What the sweep's folder is called: a hash of its stages and of its report; that of 0.1 where 0.1 began the sweep."""

    def identities(kind: str) -> list[Any]:
        return [
            [trial.variant, trial.seed, {name: getattr(stage, kind) for name, stage in trial.stages.items()}] for trial in trials
        ]

    key = digest([sweep.experiment, identities("identity"), differing(sweep.report)], 8)
    former = sweep_key_0_1(sweep.experiment, identities("identity_0_1"), sweep.report)
    folders = root / "runs" / sweep.experiment
    return former if former and (folders / former).is_dir() and not (folders / key).is_dir() else key


def only_failed(plan: Plan) -> Plan:
    """The plan that leaves alone what was never tried: stages that failed go again, and what was skipped because of them.

    Unchanged when ``plan.sweep.only_failed`` is false.
    """
    if not plan.sweep.only_failed:
        return plan
    chosen = {stage.folder for stage in plan.stages if stage.failed}
    for stage in plan.stages:  # inputs come first
        if chosen.intersection(stage.inputs):
            chosen.add(stage.folder)
    for stage in reversed(plan.stages):  # an input that is not there any more
        if stage.folder in chosen and not stage.done:
            chosen.update(stage.inputs)
    return replace(plan, left=[s for s in plan.stages if not s.done and s.folder not in chosen])


def nothing_failed(plan: Plan) -> str:
    """A line for people when ``only_failed=true`` finds nothing to do; "" when there is something, or all is to run."""
    if not plan.sweep.only_failed or any(not stage.done for stage in plan.chosen):
        return ""
    done = len(plan.chosen)
    rest = f"; {len(plan.left)} were never tried: the same command without only_failed=true runs them" if plan.left else ""
    return f"only_failed=true: no stage of {plan.title} {plan.key} has failed. {done} of {len(plan.stages)} are done{rest}"
