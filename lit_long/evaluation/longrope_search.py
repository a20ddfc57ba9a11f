"""LongRoPE's search for rescale factors (Ding et al. 2024, 2402.13753, §3): evolution, with a model's perplexity as the fitness.

Each pair's frequency is divided by λ_i, a multiple of 0.01 in [1, 1.25·s] with s = new context / trained context, non-decreasing in i.
The first candidates are position interpolation, NTK-aware scaling, YaRN's ramp and mutants of theirs; the best of all candidates seen
are the parents of the next ones. Fitness is measured on training documents: the validation ones belong to the tables. The paper's
n̂, first tokens whose angles stay as they were, is left out, as in the released models.

The paper draws mutated λ_i uniformly and throws away children that are not monotone, which a small budget cannot afford. Here a
mutated λ_i moves by a log-normal step and pushes its neighbours out of its way, and a crossover takes the pairs below a cut from
one parent and the others from another. λ are kept as whole hundredths, so that equal candidates are seen to be equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import yaml

from lit_long.batch import Batch
from lit_long.config import StageConfig, UserError
from lit_long.config.ranges import Count, CountOrNone, Range, Seed
from lit_long.data.sampling import permutation
from lit_long.data.token_store import Store, open_store
from lit_long.evaluation.evaluated_model import token_losses
from lit_long.evaluation.perplexity import perplexity
from lit_long.files import write_atomically
from lit_long.model.llama import Llama
from lit_long.model.loss import chunk_tokens
from lit_long.positions import build
from lit_long.positions.layers import build_layers
from lit_long.positions.schemes import NTKAware, PositionInterpolation, RoPE, YaRN
from lit_long.pretrained.weights import WEIGHTS, load_weights

Factors = tuple[int, ...]  # hundredths
STEP = 0.25  # of a mutation, standard deviation of ln λ


@dataclass
class SearchConfig:
    """What to search and with which budget. The paper's: population 64, 40 iterations, 32 parents, 16 mutations and crossovers."""

    stage: str = ""  # a trained stage's folder
    search: str = "longrope"
    length: CountOrNone = 0  # context to reach, tokens; 0 = twice the trained one
    out: str = ""
    root: str = ""
    domains: list[str] = field(default_factory=list)  # empty = all that have documents of that length
    sequences: Count = 4  # per domain
    population: Annotated[int, Range(least=3)] = 16
    iterations: CountOrNone = 5
    parents: Annotated[int, Range(least=2)] = 8
    mutations: CountOrNone = 6
    crossovers: CountOrNone = 4
    batch_tokens: Count = 4096
    seed: Seed = 0

    def __post_init__(self) -> None:
        if self.search != "longrope":
            raise UserError(f"command line: search={self.search}: only search=longrope is known")
        if not self.stage:
            raise UserError("command line: search=longrope needs stage=FOLDER, a trained stage's folder (runs/stages/train-…)")


@dataclass(frozen=True)
class Found:
    """The option that was found, its perplexity, and that of the start candidates and of the model as it was (``before``)."""

    option: dict[str, Any]
    perplexity: float
    before: float
    starts: dict[str, float]


def search_factors(
    config: SearchConfig, trained: StageConfig, store: Path | None, folder: Path, say: Callable[[str], None]
) -> Found:
    """Search factors for the model of the training stage in ``folder``; ``say`` hears of the start and of every generation.

    Raises:
        UserError: not a finished training stage, a model that is not rotated by plain RoPE, no stretch, no long documents.
    """
    if trained.kind != "train" or store is None:
        raise UserError(f"{folder}: a {trained.kind} stage; the search needs a training stage, whose model it can measure")
    if trained.position.get("scheme") not in ("rope", "abf"):
        raise UserError(
            f"{folder}: trained with position.scheme {trained.position.get('scheme')!r}; LongRoPE rescales rope or abf"
        )
    config.length = config.length or 2 * trained.context
    if config.length <= trained.context:
        raise UserError(f"command line: length must be above the stage's context of {trained.context}, not {config.length}")
    encoder = build(trained.position, trained.model.head_dim)
    model = Llama(trained.model, encoder, chunk_tokens(trained.model.vocab_size, trained.trainer.loss_memory))
    load_weights(model, folder / WEIGHTS)
    model.eval()
    batch = training_windows(open_store(store), config)
    rows = max(1, config.batch_tokens // config.length)

    @torch.no_grad()
    def measure(position: dict[str, Any]) -> float:
        model.pattern = build_layers(trained.layers, position, trained.model.head_dim)
        return perplexity(token_losses(model, batch, rows, lambda tokens: None)[0], batch, "search").value

    def option(factors: Factors) -> dict[str, Any]:
        scale, ones = config.length / trained.context, [1.0] * len(factors)
        fields = {"base": encoder.base, "factor": scale, "original": trained.context}
        return {"scheme": "longrope"} | fields | {"short_factors": ones, "long_factors": [factor / 100 for factor in factors]}

    before = measure(trained.position)
    say(
        f"{len(batch.tokens)} training sequences of {config.length:,} tokens; {trained.position['scheme']} as trained: {before:.4f}"
    )
    starts = start_candidates(encoder.head_dim, encoder.base, config.length / trained.context, trained.context)
    best, seen = evolve(lambda factors: measure(option(factors)), starts, config.length / trained.context, config, say)
    return Found(option(best), seen[best], before, {name: seen[factors] for name, factors in starts.items()})


def training_windows(store: Store, config: SearchConfig) -> Batch:
    """The first ``config.length`` + 1 tokens of ``config.sequences`` training documents per domain, one document each."""
    windows = []
    for domain in config.domains or store.domains:
        documents = store.documents(domain, "train")
        long_enough = np.flatnonzero(documents.lengths > config.length)
        if config.domains and not len(long_enough):
            raise UserError(f"No training document of domain '{domain}' has {config.length + 1} tokens. Choose a shorter length.")
        chosen = long_enough[permutation(len(long_enough), config.seed, "longrope search", domain)][: config.sequences]
        windows += [documents[index][: config.length + 1].astype(np.int64) for index in chosen]
    if not windows:
        raise UserError(f"No training document has {config.length + 1} tokens. Choose a shorter length.")
    tokens = torch.from_numpy(np.stack(windows))
    inputs = tokens[:, :-1]
    return Batch(
        inputs, tokens[:, 1:], torch.zeros_like(inputs), torch.arange(config.length).expand_as(inputs), mask_documents=False
    )


def start_candidates(head_dim: int, base: float, scale: float, original: int) -> dict[str, Factors]:
    """λ_i = θ_i / θ'_i of position interpolation, NTK-aware scaling and YaRN."""
    plain = RoPE(head_dim, base).inverse_frequencies(original)
    candidates = {
        "pi": PositionInterpolation(head_dim, base, scale),
        "ntk": NTKAware(head_dim, base, scale),
        "yarn": YaRN(head_dim, base, scale, original),
    }
    stretched = {name: encoder.inverse_frequencies(original) for name, encoder in candidates.items()}
    return {name: hundredths(np.log(plain) - np.log(frequencies), scale) for name, frequencies in stretched.items()}


def hundredths(logs: np.ndarray, scale: float) -> Factors:
    """exp(``logs``) as whole hundredths in [1, 1.25·``scale``]."""
    return tuple(np.clip(np.round(100 * np.exp(logs)), 100, np.floor(125 * scale)).astype(int).tolist())


def evolve(
    fitness: Callable[[Factors], float],
    starts: dict[str, Factors],
    scale: float,
    config: SearchConfig,
    say: Callable[[str], None],
) -> tuple[Factors, dict[Factors, float]]:
    """The best candidate (lowest ``fitness``) and the fitness of all that were tried. A function of its arguments alone."""
    random = np.random.default_rng(config.seed)
    seen: dict[Factors, float] = {}

    def try_all(candidates: list[Factors]) -> None:
        for factors in candidates:
            if factors not in seen:
                seen[factors] = fitness(factors)

    def ranked() -> list[Factors]:
        return sorted(seen, key=lambda factors: (not np.isfinite(seen[factors]), seen[factors], factors))

    first = list(starts.values())
    try_all(first)
    say("  ".join(f"{name} {seen[factors]:.4f}" for name, factors in starts.items()))
    try_all([mutate(first[i % len(first)], scale, random) for i in range(max(0, config.population - len(first)))])
    for iteration in range(config.iterations):
        parents = ranked()[: config.parents]

        def pick(parents: list[Factors] = parents) -> Factors:
            return parents[random.integers(len(parents))]

        children = [mutate(pick(), scale, random) for _ in range(config.mutations)]
        children += [cross(pick(), pick(), random) for _ in range(config.crossovers)]
        try_all(children)
        say(f"generation {iteration + 1} of {config.iterations}: best {seen[ranked()[0]]:.4f} of {len(seen)} candidates")
    return ranked()[0], seen


def mutate(factors: Factors, scale: float, random: np.random.Generator) -> Factors:
    """One to three λ_i moved; those before are lowered to it and those after are raised to it where they would break the order."""
    logs = np.log(np.array(factors) / 100)
    for _ in range(random.integers(1, 4)):
        index = random.integers(len(logs))
        value = logs[index] + STEP * random.normal()
        logs = np.concatenate([np.minimum(logs[:index], value), [value], np.maximum(logs[index + 1 :], value)])
    return hundredths(logs, scale)


def cross(low: Factors, high: Factors, random: np.random.Generator) -> Factors:
    """The pairs below a random cut from ``low``, the others from ``high``, raised where they would break the order."""
    cut = int(random.integers(len(low) + 1))
    return tuple(np.maximum.accumulate(low[:cut] + high[cut:]).tolist())


def write_option(file: Path, found: Found, config: SearchConfig) -> Path:
    """Write the option file, with how it was found."""
    how = f"found by python -m lit_long.theory search=longrope on {Path(config.stage).name}, seed {config.seed}"
    measured = f"perplexity on training documents of {config.length} tokens: {found.perplexity:.4f} (before: {found.before:.4f})"
    body = yaml.safe_dump(found.option, sort_keys=False, default_flow_style=None, width=120)
    write_atomically(file, f"# LongRoPE factors {how}.\n# {measured}.\n{body}")
    return file
