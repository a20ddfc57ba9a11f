"""A stage's settings resolved: what follows from its parent, its data or this machine filled in, and what makes no sense refused.

Everything that can be known before the first stage runs is checked here, so that no sweep fails an hour later.

With sources the domains of a mixture are the sources' names. Naming them is enough: as long as no weight is given to one of them, they take the
mixture over in equal shares, and the built-in corpus with its weights is left out. Once a source has a weight the weights count as they
are written, and the built-in corpus is there as well if they name one of its domains, with 0 too (it is then only measured on).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

from lit_long.config import (
    AdapterConfig,
    CurriculumConfig,
    DataConfig,
    EvaluationConfig,
    LayersConfig,
    SamplingConfig,
    SourceConfig,
    StageConfig,
    TrainerConfig,
    UserError,
    nearest,
    plain,
    typed,
)
from lit_long.config.checkpoints import check_checkpoints, milestone_updates
from lit_long.config.command import merge
from lit_long.config.mesh import check_mesh, mesh_of
from lit_long.config.schema import SHORTEST_RETRIEVAL
from lit_long.config.typed import written
from lit_long.config.updates import check_whole_sequences, first_update, updates_of_run
from lit_long.data.builtin_corpus import DOMAINS
from lit_long.data.conversations import template_of
from lit_long.data.curriculum import make_phases
from lit_long.data.packing import PACKINGS
from lit_long.data.sources import resolve_source
from lit_long.data.synthetic import COPYING, RETRIEVAL, SYNTHETIC
from lit_long.data.synthetic import DOMAIN as DOCS
from lit_long.data.tokenizer import borrowed_template
from lit_long.evaluation.registry import check_task
from lit_long.positions import settings as position_settings
from lit_long.positions.layers import LayerPattern, build_layers, check_layers, check_pattern, layer_settings
from lit_long.processor import has_bf16_products

RUN = ("context", "tokens", "tokens_per_update", "data", "curriculum", "seed")  # of its parent's run, what a branch has in common
FROM_PARENT = ("position", "layers", *RUN)
TRAIN = "train"  # base=train
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon"}  # as people write them; made in training/optimizers.py, which needs torch
BUILTIN = (*DOMAINS, *SYNTHETIC)


def resolve_stage(config: StageConfig, parent: StageConfig | None, own: Collection[str], where: str) -> StageConfig:
    """Complete settings of a train or evaluate stage.

    Args:
        parent: settings of the stage that it starts from, or whose model it measures; None for a model from scratch or model.init.
        own: which of `FROM_PARENT` the stage names itself; an evaluation otherwise takes its parent's position and layers.
        where: file and stage, for messages.
    """
    if config.kind not in ("train", "evaluate"):
        raise UserError(f"{where}.kind must be train or evaluate, not {config.kind!r}")
    if config.kind == "evaluate":
        config = resolve_checkpoint(config, parent, where) if config.branch < 1 else config
        if parent is not None:
            theirs = {name: getattr(parent, name) for name in ("position", "layers") if name not in own}
            config = replace(config, model=parent.model, seed=parent.seed, **theirs)
        elif not config.model.init:
            raise UserError(f"{where}: an evaluate stage needs a parent, the stage whose model it measures, or model.init")
        config = replace(config, evaluation=resolve_evaluation(config.evaluation, config.data))
        check_evaluation(config.evaluation, measurable_domains(config.data), where)
    else:
        config = resolve_branch(config, parent, own, where) if config.branch < 1 else config
        check_training(config, where)
        check_adapter(config.adapter, parent is not None or bool(config.model.init), where)
        if config.adapter.rank and "gate_proj" in config.adapter.targets and config.model.activation == "relu2":
            raise UserError(f"{where}: adapter.targets: model.activation=relu2 has no gate_proj; leave it out")
    if parent is not None and parent.kind != "train":
        raise UserError(f"{where}.parent must be a train stage, not {config.parent!r}")
    evaluation = config.evaluation
    lengths = [*evaluation.lengths, *evaluation.retrieval_lengths, *evaluation.passkey_lengths, *evaluation.task_lengths]
    measured = max(lengths, default=config.context)
    longest = config.context if config.kind == "train" else measured
    position = resolve_position(config, config.position, longest, where)
    layers = resolve_layers(config, config.layers, position, longest, where)
    check_slopes(config, layers, position, where)
    if config.kind == "evaluate" and evaluation.query_scales:
        check_fitted(build_layers(layers, position, config.model.head_dim, where, longest), evaluation.query_scales, where)
    if config.kind == "train":
        config = replace(config, curriculum=resolve_curriculum(config, position, where))
        check_phases(config, where)
    return replace(
        config, position=position, layers=layers, trainer=replace(config.trainer, precision=resolve_precision(config.trainer))
    )


def resolve_branch(config: StageConfig, parent: StageConfig | None, own: Collection[str], where: str) -> StageConfig:
    """A stage that goes on from within its parent's run: the run's data, sequences and seed are its own, too. Position and layers are the stage's
    throughout, whatever the parent's phases have of their own.

    Raises:
        UserError: no parent that is trained here and keeps a checkpoint there, settings that are the run's, or another model than the parent's.
    """
    key = f"{where}.branch={config.branch:g}"
    parent = check_run(config, parent, key)
    if named := [name for name in RUN if name in own]:
        raise UserError(f"{key}: {named[0]} is that of {config.parent}, whose run it goes on with; leave it out")
    if config.adapter.rank:
        raise UserError(f"{key}: neither it nor {config.parent} may be a branch of another stage or train an adapter")
    phases = [replace(phase, position={}, layers={}) for phase in parent.curriculum.phases]
    config = replace(config, **{name: getattr(parent, name) for name in RUN} | {"curriculum": CurriculumConfig(phases)})
    check_milestone(config, parent, key)
    theirs = replace(parent.model, qk_norm=config.model.qk_norm if parent.model.qk_norm == "none" else parent.model.qk_norm)
    for name, value in plain(config.model).items():
        if value != getattr(theirs, name):
            raise UserError(f"{key}: model.{name}={value} is not that of {config.parent}, {getattr(theirs, name)}")
    return config


def resolve_checkpoint(config: StageConfig, parent: StageConfig | None, where: str) -> StageConfig:
    """An evaluation of its parent as it was within its run. Position and layers are those that the parent ends with, unless the stage names its own.

    Raises:
        UserError: no parent that is trained here and keeps a checkpoint there.
    """
    key = f"{where}.branch={config.branch:g}"
    parent = check_run(config, parent, key)
    config = replace(config, tokens=parent.tokens, tokens_per_update=parent.tokens_per_update)
    if not first_update(config):
        raise UserError(f"{key}: nothing is trained there yet; measure what {config.parent} starts from")
    check_milestone(config, parent, key)
    return config


def check_run(config: StageConfig, parent: StageConfig | None, key: str) -> StageConfig:
    """The parent, where a stage can start from within its run; otherwise UserError."""
    if parent is None or not config.parent or parent.kind != "train":
        raise UserError(f"{key}: needs a parent, a stage that is trained here: base={TRAIN} where its weights came with lit-long")
    if parent.branch < 1 or parent.adapter.rank:
        raise UserError(f"{key}: neither it nor {config.parent} may be a branch of another stage or train an adapter")
    return parent


def check_milestone(config: StageConfig, parent: StageConfig, key: str) -> None:
    """Raise UserError for a parent that keeps no checkpoint where ``config.branch`` says."""
    if (first := first_update(config)) and first not in milestone_updates(parent):
        raise UserError(
            f"{key}: {config.parent} keeps no checkpoint there; stages.{config.parent}.trainer.milestones=[{config.branch:g}] keeps it"
        )


def resolve_layers(config: StageConfig, layers: LayersConfig, position: dict[str, Any], longest: int, where: str) -> LayersConfig:
    """``layers`` complete; none where all are alike. Raises UserError for groups that do not fit the model, or ``longest`` tokens."""
    check_pattern(layers, where)
    check_layers(layers, config.model.n_layers, max(longest, config.model.context), where)
    try:
        return layer_settings(layers, position, config.model.head_dim, where, longest)
    except UserError:
        explain_shorter(config, position, where)
        for name, group in layers.groups.items():
            explain_shorter(config, group.position, f"{where}: layers.groups.{name}")
        raise


def resolve_position(config: StageConfig, position: dict[str, Any], longest: int, where: str) -> dict[str, Any]:
    """``position`` complete. Raises UserError for what makes no encoder for the model, or none for ``longest`` tokens."""
    try:
        return position_settings(position, config.model.head_dim, where, longest)
    except UserError:
        explain_shorter(config, position, where)
        raise


def explain_shorter(config: StageConfig, position: dict[str, Any], where: str) -> None:
    """Raise the UserError of an encoder whose ``factor`` follows from a context that is shorter than the model's, if that is all that is wrong."""
    context, trained = config.context, config.model.context
    if context >= trained or position.get("factor") != context / trained or "scheme" not in position:
        return

    def stands(**factor: float) -> bool:
        try:
            return bool(position_settings(position | factor, config.model.head_dim, where))
        except UserError:
            return False

    if stands() or not stands(factor=1.0):
        return
    raise UserError(
        f"{where}: context={context} is shorter than model.context={trained}, from which {position['scheme']} extends (position.factor={context / trained:g} is "
        f"context / model.context); take a context of {written(trained)} or more, or an encoder that extends nothing, such as position=rope"
    )


def check_slopes(config: StageConfig, layers: LayersConfig, position: dict[str, Any], where: str) -> None:
    """Raise UserError for scores that fall with distance (ALiBi) where nothing computes them: on GPUs, and on ranks that share heads or sequences."""
    pattern, trainer = build_layers(layers, position, config.model.head_dim, where), config.trainer
    if all(group.encoder.score_slopes(1) is None for group in pattern.groups):
        return
    shared = [key for key in ("context_parallel", "tensor_parallel") if getattr(trainer, key) > 1]
    if trainer.accelerator == "gpu" or shared:
        what = f"trainer.{shared[0]}={getattr(trainer, shared[0])}" if shared else "trainer.accelerator=gpu"
        raise UserError(
            f"{where}: position.scheme=alibi: its scores are computed on CPUs only, by ranks with whole sequences and all heads, not with {what}"
        )


def resolve_curriculum(config: StageConfig, position: dict[str, Any], where: str) -> CurriculumConfig:
    """The curriculum with each phase's own position and layers complete. Raises UserError for phases that make no run."""
    make_phases(config.curriculum, config.context, config.tokens_per_update, 1, where)
    resolved = []
    for number, phase in enumerate(config.curriculum.phases):
        key = f"{where}.curriculum.phases[{number}]"
        if phase.weights and not uses_builtin(config.data) and not set(phase.weights) & set(config.data.sources):
            phase = replace(phase, weights={})  # sources took the mixture over, here as in the stage (`resolve_weights`)
        check_weights(phase.weights, mixable_domains(config.data), f"{key}.weights")
        if phase.weights and not any(phase.weights.values()):
            raise UserError(f"{key}.weights gives no domain a share")
        shortest = round(config.context * min(phase.scale, phase.grow_from or phase.scale))
        check_retrieval(phase.weights or config.data.repeats or config.data.weights, shortest, f"{key}: data.weights")
        longest = round(config.context * max(phase.scale, phase.grow_from))
        if phase.position:
            own = phase.position if "scheme" in phase.position else position | phase.position
            phase = replace(phase, position=resolve_position(config, own, longest, key))
        if phase.layers:
            own = {} if "pattern" in phase.layers else plain(config.layers)
            merge(own, phase.layers)
            layers = typed(LayersConfig, own, key, "layers.")
            phase = replace(phase, layers=plain(resolve_layers(config, layers, phase.position or position, longest, key)))
        resolved.append(phase)
    return CurriculumConfig(resolved)


def check_phases(config: StageConfig, where: str) -> None:
    """Raise UserError for sequences, of any phase, that ranks cannot share: an update's equally, and each in two equal chunks a rank."""
    mesh, updates = mesh_of(config.trainer), updates_of_run(config)
    ranks = mesh.context
    for phase in make_phases(config.curriculum, config.context, config.tokens_per_update, updates, where):
        if (sequences := config.tokens_per_update // phase.context) % mesh.data_ranks:
            raise UserError(
                f"{where}: from update {phase.start} on, an update of tokens_per_update={config.tokens_per_update} has {sequences} sequences of "
                f"{phase.context} tokens, which {mesh.data_ranks} ranks (replicate · shard) cannot share equally; take fewer ranks, another "
                "tokens_per_update or other scales of the curriculum's phases"
            )
        if ranks > 1 and phase.context % (2 * ranks):
            raise UserError(
                f"{where}: trainer.context_parallel={ranks} cuts every sequence into {2 * ranks} equal chunks, but from update {phase.start} on "
                f"sequences have {phase.context} tokens; choose a context (and in a curriculum scales) that {2 * ranks} divides"
            )


def check_fitted(pattern: LayerPattern, values: list[float], where: str) -> None:
    """Raise UserError for query scales that none of the ``values`` could be fitted to."""
    if not any(group.query_scale and group.query_scale.fitted for group in pattern.groups):
        raise UserError(
            f"{where}: evaluation.query_scales: no layers have a query scale with a constant to fit; set layers.groups.NAME.query_scale, or leave it out"
        )
    for value in values:
        try:
            pattern.with_constant(value)
        except UserError as error:
            raise UserError(f"{where}: evaluation.query_scales: {error}") from None


def check_training(config: StageConfig, where: str) -> None:
    if not config.tokens:
        raise UserError(f"{where}.tokens must be at least 1 token, not {config.tokens}")
    check_whole_sequences(config.tokens_per_update, config.context, where, f"{where.rpartition(': ')[2]}.")
    check_mesh(config, where)
    model = config.model
    if model.n_heads % model.n_kv_heads:
        raise UserError(f"{where}: model.n_heads={model.n_heads} must be a multiple of model.n_kv_heads={model.n_kv_heads}")
    if model.vocab_size < config.data.corpus.vocab_size:
        raise UserError(
            f"{where}: model.vocab_size={model.vocab_size} must not be smaller than data.corpus.vocab_size="
            f"{config.data.corpus.vocab_size}, the tokenizer's"
        )
    data, known = config.data, mixable_domains(config.data)
    check_weights(data.weights, known, f"{where}: data.weights")
    check_weights(data.repeats, known, f"{where}: data.repeats")
    chosen, mixed = ("repeats", data.repeats) if data.repeats else ("weights", data.weights)
    if not any(mixed.values()):
        raise UserError(f"{where}: data.{chosen} gives no domain a share; known here: {', '.join(known)}")
    for name in (name for name in SYNTHETIC if data.repeats.get(name)):
        raise UserError(f"{where}: data.repeats.{name}: there is no pass over what never ends; use data.weights instead")
    if data.packing not in PACKINGS:
        raise UserError(
            f"{where}: data.packing must be {', '.join(PACKINGS)}, not {data.packing!r}{nearest(data.packing, PACKINGS)}"
        )
    check_sampling(data, [name for name in known if name != COPYING], where)
    check_retrieval(mixed, config.context, f"{where}: data.weights")
    check_checkpoints(config, where)


def check_optimizer(config: StageConfig, where: str) -> None:
    """Raises UserError for an optimizer that cannot train the stage where it is to run."""
    name = config.optim.name
    if name not in OPTIMIZERS:
        raise UserError(f"{where}: optim.name must be {' or '.join(OPTIMIZERS)}, not {name!r}{nearest(name, OPTIMIZERS)}")
    if name == "muon" and config.trainer.strategy != "single":
        raise UserError(
            f"{where}: optim.name=muon needs whole matrices, and trainer.strategy={config.trainer.strategy} deals them to ranks; "
            f"{where.rpartition(': ')[2]}.optim.name=adamw, or trainer.strategy=single"
        )


def check_adapter(adapter: AdapterConfig, has_weights: bool, where: str) -> None:
    if adapter.train_embeddings_and_norms and not adapter.rank:
        raise UserError(f"{where}: adapter.rank must be at least 1 for train_embeddings_and_norms, not 0; see configs/adapter")
    if not adapter.rank:
        return
    for name in adapter.targets:
        if name not in MATRICES:
            raise UserError(f"{where}: adapter.targets: no matrix {name!r}{nearest(name, MATRICES)}")
    if not adapter.targets:
        raise UserError(f"{where}: adapter.targets is empty; known here: {', '.join(MATRICES)}")
    if not has_weights:
        raise UserError(
            f"{where}: adapter: there are no weights to adapt, for the stage has no parent and no model.init. Give the adapter to a later stage "
            f"only: stages.NAME.adapter=lora"
        )
    if not find_spec("peft"):
        raise UserError(f"{where}: adapter: needs peft, which is not installed: pip install 'lit-long[lora]'; or adapter=none")


def check_retrieval(weights: dict[str, float], context: int, key: str) -> None:
    if weights.get(RETRIEVAL) and context + 1 < SHORTEST_RETRIEVAL:
        raise UserError(f"{key}.retrieval needs a context of at least {SHORTEST_RETRIEVAL - 1} tokens, not {context}")


def check_weights(weights: dict[str, float], known: list[str], key: str) -> None:
    for name in weights:
        if name not in known:
            raise UserError(f"{key}.{name}: unknown domain{nearest(name, known)}")


def check_sampling(data: DataConfig, known: list[str], where: str) -> None:
    for name, sampling in data.sampling.items():
        key = f"{where}: data.sampling.{name}"
        if name not in known:
            raise UserError(f"{key}: unknown domain{nearest(name, known)}")
        if bool(sampling.long_tokens) != bool(sampling.long_share):
            raise UserError(f"{key}: long_tokens and long_share belong together")
        if name == RETRIEVAL and sampling != SamplingConfig(max_tokens=sampling.max_tokens):
            raise UserError(f"{key}: its examples are made, not drawn; of them only max_tokens can be set")
        if name == RETRIEVAL and 0 < sampling.max_tokens < SHORTEST_RETRIEVAL:
            raise UserError(
                f"{key}.max_tokens must be at least {SHORTEST_RETRIEVAL}, or 0 for the whole context, not {sampling.max_tokens}"
            )


def check_evaluation(evaluation: EvaluationConfig, known: list[str], where: str) -> None:
    chosen = {
        "domains": evaluation.domains,
        "retrieval_domain": [evaluation.retrieval_domain] if evaluation.retrieval_domain else [],
    }
    for key, name in ((key, name) for key, names in chosen.items() for name in names):
        if name not in known:
            raise UserError(
                f"{where}: unknown domain {name!r} in evaluation.{key}{nearest(name, known)} (with held-out documents; the built-in "
                f"corpus's are there when data.weights names them, with 0 too)"
            )
    if evaluation.query_scales and not (evaluation.lengths and evaluation.domains):
        raise UserError(
            f"{where}: evaluation.query_scales are compared by perplexity; name evaluation.lengths and evaluation.domains"
        )
    longest = max(evaluation.lengths, default=1)
    for length in evaluation.lengths:
        if longest % length:
            raise UserError(
                f"{where}: evaluation.lengths must divide the longest, so that all see the same tokens; {length} does not"
            )
    if evaluation.precision not in ("32-true", "bf16-true"):
        raise UserError(f"{where}: evaluation.precision must be 32-true or bf16-true, not {evaluation.precision!r}")
    for task in evaluation.tasks:
        check_task(task, f"{where}: evaluation.tasks")


def resolve_precision(trainer: TrainerConfig) -> str:
    """``auto`` resolved: bf16 where the hardware computes it natively, so that the identity says what was computed."""
    known = ("32-true", "bf16-mixed", "bf16-true")
    if trainer.precision in known:
        return trainer.precision
    if trainer.precision != "auto":
        raise UserError(f"trainer.precision must be auto, {', '.join(known)}, not {trainer.precision!r}")
    if trainer.accelerator != "cpu":
        return "bf16-mixed"
    return "bf16-mixed" if has_bf16_products() else "32-true"


def resolve_data(
    data: DataConfig,
    where: str,
    found: dict[str, SourceConfig],
    probe: Callable[..., Any] = lambda read, *arguments: read(*arguments),
) -> DataConfig:
    """The data with sources and weights resolved.

    Args:
        found: sources that were resolved before, filled in here: files are looked at once for all stages of a sweep.
        probe: calls what reads files; None from it leaves a source as it is written.

    Raises:
        UserError: a source that takes a name of the built-in corpus, or as `resolve_source` does.
    """
    if not data.sources:
        return data
    resolved = {}
    for name, source in data.sources.items():
        if name in BUILTIN:
            raise UserError(
                f"{where}: data.sources.{name} has a name of the built-in corpus ({', '.join(BUILTIN)}); call it otherwise"
            )
        key = f"{name} {source}"
        if key not in found:
            found[key] = probe(resolve_source, name, source) or source
        resolved[name] = found[key]
    weights, sampling = resolve_weights(data), data.sampling
    if weights != data.weights:  # sources took the mixture over
        sampling = {name: one for name, one in sampling.items() if name not in BUILTIN}
    return replace(data, sources=resolved, weights=weights, sampling=sampling)


def resolve_weights(data: DataConfig) -> dict[str, float]:
    """The weights; equal shares of the sources, where there are some and no weight names one of them."""
    return data.weights if not data.sources or set(data.weights) & set(data.sources) else dict.fromkeys(data.sources, 1.0)


def uses_builtin(data: DataConfig) -> bool:
    """Whether the built-in corpus is a part of the data, which are resolved."""
    return not data.sources or any(name in BUILTIN for name in data.weights)


def mixable_domains(data: DataConfig) -> list[str]:
    """What the weights may name."""
    return [*data.sources, *(BUILTIN if uses_builtin(data) else ())]


def measurable_domains(data: DataConfig) -> list[str]:
    """Domains with held-out documents."""
    own = [name for name, source in data.sources.items() if source.validation_share > 0]
    return [*own, *(DOMAINS if uses_builtin(data) else ())]


def resolve_evaluation(evaluation: EvaluationConfig, data: DataConfig) -> EvaluationConfig:
    """Where an experiment measures on the built-in corpus and that was replaced by sources, measure on these."""
    domains, retrieval = evaluation.domains, evaluation.retrieval_domain
    if not uses_builtin(data) and domains and all(name in DOMAINS for name in domains):
        domains = measurable_domains(data)
    if not retrieval and (evaluation.retrieval_lengths or evaluation.passkey_lengths):
        retrieval = DOCS if uses_builtin(data) else next(iter(domains), "")
    return replace(evaluation, domains=domains, retrieval_domain=retrieval)


def chat_templates(data: DataConfig) -> dict[str, str | None]:
    """{source: digest} of the chat templates that the instruction data among the sources are written with."""
    borrowed = borrowed_template(data.corpus.tokenizer)
    templates = {
        name: template_of(f"data.sources.{name}", source, borrowed)
        for name, source in data.sources.items()
        if source.instruct.schema
    }
    return {name: template and template.digest for name, template in templates.items()}
