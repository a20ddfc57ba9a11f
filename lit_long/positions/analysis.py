"""The analysis of positional encoders: every scheme's numbers, and the paper's statements checked beside ours. Tables only, no files.

A scheme is an option file configs/position/NAME.yaml, the user's own included, for a model pretrained with ``base`` on ``length``
tokens and stretched to ``factor`` times that; its spectrum is the one in force at the stretched length.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from lit_long.config import ModelConfig, TrackingConfig, UserError, compose_layers, compose_position, option_names
from lit_long.config.command import find_file
from lit_long.config.ranges import Base, Count, CountOrNone, Range
from lit_long.positions import SCHEMES, PositionalEncoder, build
from lit_long.positions.bounds import context_bound
from lit_long.positions.layers import build_layers, check_layers
from lit_long.positions.own_class import check_frequencies, is_own
from lit_long.positions.schemes import Stretch
from lit_long.positions.theory import (
    adaptation_distances,
    bound_curve,
    critical_dimension,
    granularity,
    granularity_limit,
    helix,
    printed_bounds,
    scores,
    sine_similarity,
    spectrum,
    theorem_1,
    thetas,
)

Rows = list[dict[str, Any]]
FIGURE_4 = ("rope", "pi", "abf", "xpos_abf")
FARTHEST, BINS = 30_000, 120  # of Figure 4's axis, tokens, and what its curves are summed up into
UNIFORM, ROTATED = "uniform", "rope"  # the option of layers that are all alike; the stage's position, for the patterns
TEMPERATURES = 8  # contexts drawn for each doubling
# The paper's own model: Llama 2, ABF's β, PI's two α, the context of the long models.
HEAD_DIM, BASE, BETA, ALPHA, ALPHA_8, CONTEXT = 128, 1e4, 50, 1 / 4, 1 / 8, 32_768


@dataclass
class TheoryConfig:
    """What `python -m lit_long.theory` computes and where it goes."""

    out: str = ""  # empty = runs/theory below root
    root: str = ""
    schemes: list[str] = field(default_factory=lambda: ["all"])  # option files: names in configs/position, or FILE.yaml
    head_dim: Annotated[int, Range(least=2)] = HEAD_DIM
    base: Base = BASE
    factor: Stretch = 8.0  # stretched context / original one
    length: Count = 4096  # original context, tokens
    truncate: Count = 2048  # T of Giraffe's truncated basis, tokens
    distances: list[CountOrNone] = field(
        default_factory=lambda: [0, 1, 2, 5, 10, 20, 50, 100, 200, *range(500, FARTHEST + 1, 500)]
    )
    layers: list[str] = field(default_factory=lambda: ["all"])  # patterns: names in configs/layers, or FILE.yaml
    n_layers: Count = 12  # that the patterns are drawn for
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def stretched(self) -> int:
        """The context after stretching, tokens."""
        return round(self.factor * self.length)


def encoders(config: TheoryConfig) -> tuple[dict[str, PositionalEncoder], list[str]]:
    """The chosen schemes by name, and why some of ``all`` are missing. (LongRoPE is not of them: it has no factors before a search.)

    Raises:
        UserError: settings that make no sense, an unknown scheme, or a scheme named that cannot be built.
    """
    if not config.distances:
        raise UserError("command line: distances must be a list of numbers of tokens, and is empty")
    everything = config.schemes == ["all"]
    model = ModelConfig(head_dim=config.head_dim, context=config.length, rope_base=config.base)
    found: dict[str, PositionalEncoder] = {}
    left_out: list[str] = []
    for name in sorted(option_names("position"), key=familiarity) if everything else config.schemes:
        where = f"position {name}"
        try:
            find_file("configs/position", name, "schemes")
            position = compose_position(name, model, config.stretched)
            if everything and "training" in position:
                left_out.append(f"{name} changes positions in training only; its encoder is {position.get('scheme')}'s")
                continue
            if "truncate" in position:
                position["truncate"] = config.truncate
            encoder = build(position, config.head_dim, where, config.stretched)
            if is_own(scheme := str(position["scheme"])):
                check_frequencies(encoder, config.stretched, f"{where}: position.scheme {scheme!r}")
            if encoder.score_slopes(1) is not None:
                raise UserError(f"{where}: changes scores, not the rotation that is analysed here")
            found[Path(name).stem] = encoder
        except UserError as error:
            if not everything:
                raise
            left_out.append(f"{name}: {error}")
    if not found:
        raise UserError("; ".join(left_out[:1]) or "command line: schemes must name at least one option of configs/position")
    return found, left_out


def familiarity(name: str) -> int:
    """Built-in schemes in the order of `SCHEMES`, then the user's."""
    return list(SCHEMES).index(name) if name in SCHEMES else len(SCHEMES)


def analyze(config: TheoryConfig) -> tuple[dict[str, Rows], list[str]]:
    """All tables by name, and what was left out.

    ``spectrum``, ``decay``, ``granularity`` and ``base_bound`` are those that others script against; ``schemes`` sums every scheme
    up, ``statements`` has the paper's claims, ``bands`` and ``helices`` are for drawing.
    """
    found, left_out = encoders(config)
    length, d = config.stretched, config.head_dim
    trained = thetas(d, config.base)
    tables: dict[str, Rows] = {name: [] for name in ("spectrum", "decay", "granularity", "schemes", "bands")}
    for name, encoder in found.items():
        frequencies, factor = spectrum(encoder, length), encoder.attention_factor(length)
        tables["spectrum"] += [
            {"scheme": name, "head_dim": d, "index": j, "inv_freq": float(value), "attention_factor": factor}
            for j, value in enumerate(frequencies)
        ]
        listed = scores(encoder, config.distances, length)
        tables["decay"] += [
            {"scheme": name, "distance": m, "score": float(score)} for m, score in zip(config.distances, listed, strict=True)
        ]
        value = granularity(frequencies)
        tables["granularity"].append({"scheme": name, "head_dim": d, "value": value})
        dense = scores(encoder, range(max(FARTHEST, length) + 1), length)
        away = adaptation_distances(trained, encoder, config.length, length)
        tables["schemes"].append(
            {
                "scheme": name,
                "granularity": value,
                "adaptation": float(away.max()),
                "adaptation_mean": float(away.mean()),
                "slowest": float(frequencies[-1] / trained[-1]),
                "attention_factor": factor,
                "score_original": float(dense[config.length]),
                "score_stretched": float(dense[length]),
                "first_negative": int((dense < 0).argmax()) if (dense < 0).any() else None,
            }
        )
        if name in FIGURE_4 or len(found) <= 6:
            tables["bands"] += bands(name, dense[: FARTHEST + 1])
    grid = {*np.round(np.geomspace(1e3, 1e7, 161)).tolist(), config.base, BETA * config.base}
    tables["base_bound"] = [{"base": b, "head_dim": d, "length": bound} for b, bound in bound_curve(sorted(grid), d)]
    tables["helices"] = helices()
    tables["statements"] = statements()
    tables["layers"], missing = patterns(config)
    tables["query_scale"] = temperatures(config)
    return tables, left_out + missing


def patterns(config: TheoryConfig) -> tuple[Rows, list[str]]:
    """What the layers of each pattern see, a row a layer, from 1 on; and why some of ``all`` are missing.

    ``window``: tokens that a query sees, None for all; ``reach``: tokens of the input that the layer's output depends on, its own included, and
    ``positioned``: those that it gets to know through layers with positions alone, in a context of ``stretched`` tokens; ``pairs``: pairs of tokens
    scored there, as a share of those of a layer that sees all.

    Raises:
        UserError: no such pattern, or a pattern named that is for more layers.
    """
    everything = config.layers == ["all"]
    rows: Rows = []
    left_out: list[str] = []
    for option in [name for name in option_names("layers") if name != UNIFORM] if everything else config.layers:
        try:
            find_file("configs/layers", option, "layers")
            rows += seen_by(option, config)
        except UserError as error:
            if not everything:
                raise
            left_out.append(str(error))
    return rows, left_out


def seen_by(option: str, config: TheoryConfig) -> Rows:
    """The rows of one pattern."""
    context = config.stretched
    model = ModelConfig(head_dim=config.head_dim, context=config.length, rope_base=config.base, n_layers=config.n_layers)
    layers, where = compose_layers(option, model, context), f"layers {option}"
    pattern = build_layers(layers, compose_position(ROTATED, model, context), config.head_dim, where, context)
    check_layers(layers, config.n_layers, context, where)
    rows: Rows = []
    reach = positioned = 1
    for layer in range(config.n_layers):
        group = pattern.groups[pattern.place(layer)]
        window = min(group.window or context, context)
        rotated = any(group.encoder.inverse_frequencies(context))
        reach = min(context, reach + window - 1)
        positioned = min(context, positioned + window - 1) if rotated else positioned
        pairs = (context * window - window * (window - 1) // 2) / (context * (context + 1) // 2)
        name = layers.pattern[layer % len(layers.pattern)]
        row = {"pattern": Path(option).stem, "layer": layer + 1, "group": name, "rotated": rotated, "window": group.window}
        rows.append(row | {"reach": reach, "positioned": positioned, "pairs": pairs})
    return rows


def temperatures(config: TheoryConfig) -> Rows:
    """β, by which query scales multiply the scores of the last query in a context, for contexts from a quarter of ``length`` to twice ``stretched``.

    SWAN's a is fitted to a model and unpublished: two are shown. DroPE's s is the context divided by ``length``, and 1 within it.
    Llama 4's L is 8,192.
    """
    trained = config.length
    doublings = int(np.log2(8 * config.factor) * TEMPERATURES)
    contexts = np.unique(np.round(trained / 4 * 2 ** (np.arange(doublings + 1) / TEMPERATURES)).astype(int).clip(1))
    stretch = np.log(np.maximum(1, contexts / trained))
    small = max(2, trained // 16)
    forms = {
        f"SWAN, a = {small:,}": np.log(small + contexts - 1) / np.log(small),
        f"SWAN, a = {trained:,}": np.log(trained + contexts - 1) / np.log(trained),
        "DroPE, c = 0.412": 1 + 0.412 * stretch,
        "DroPE, c = 0.103": 1 + 0.103 * stretch,
        "Llama 4, c = 0.1": 1 + 0.1 * np.log1p(contexts // 8192),
    }
    return [
        {"form": form, "context": int(context), "beta": float(beta)}
        for form, betas in forms.items()
        for context, beta in zip(contexts, betas, strict=True)
    ]


def bands(name: str, dense: np.ndarray) -> Rows:
    """Lowest, mean and highest score in each of `BINS` ranges of distance: the curve itself oscillates too fast to be drawn."""
    edges = np.unique(
        np.concatenate([[0], np.geomspace(20, len(dense), 12).astype(int), np.linspace(0, len(dense), BINS).astype(int)])
    )
    pieces = [(low, dense[low:high]) for low, high in itertools.pairwise(edges)]
    rows = [(low + (len(piece) - 1) / 2, piece.min(), piece.mean(), piece.max()) for low, piece in pieces]
    return [{"scheme": name} | dict(zip(("distance", "low", "mean", "high"), map(float, row), strict=True)) for row in rows]


def helices() -> Rows:
    """Figure 8 for the pair whose frequency ABF halves, j = d·ln 2/(2·ln β) ≈ 11: the paper's ratio of a between (a) and (c)."""
    a = BASE ** (-np.log(2) / np.log(BETA))
    panels = {"(a) RoPE": (a, 1.0), "(b) RoPE + PI": (a, ALPHA), "(c) RoPE + ABF": (a / 2, 1.0)}
    rows: Rows = []
    for name, (frequency, alpha) in panels.items():
        drawn = helix(frequency, alpha)
        for kind, points in drawn._asdict().items():
            rows += [{"panel": name, "kind": kind, "x": x, "y": y, "z": z} for x, y, z in points.tolist()]
    return rows


def statements() -> Rows:
    """The paper's statements (App. B; d = 128, b = 10,000, β = 50, α = 1/4 and 1/8), each with ours and a verdict."""
    rope, abf = thetas(HEAD_DIM, BASE), thetas(HEAD_DIM, BETA * BASE)
    pi_4, pi_8 = thetas(HEAD_DIM, BASE, ALPHA), thetas(HEAD_DIM, BASE, ALPHA_8)
    ordered = [granularity(frequencies) for frequencies in (rope, abf, pi_4, pi_8)]
    ones = np.ones(HEAD_DIM)
    draws = np.random.default_rng(0).normal(size=(1000, HEAD_DIM))
    holding = sum(low <= sine_similarity(x, abf) <= high for x in draws for low, high in [theorem_1(x, abf)])
    change = 1 - abf[1] / rope[1]
    bound = context_bound(BETA * BASE, HEAD_DIM)
    needed = next(b for b in itertools.count(BETA * BASE, 5_000) if context_bound(b, HEAD_DIM, CONTEXT) == CONTEXT)
    limit, limit_pi = granularity_limit(BETA * BASE), granularity_limit(BASE, ALPHA)
    printed, actual = printed_bounds(ones, abf)[1], sine_similarity(ones, abf)
    rows = [
        ("granularity of ABF → 1/(ln b + ln β)", "0.076", f"{limit:.4f} (d = 128: {ordered[1]:.4f})", near(limit, 0.076)),
        ("granularity of PI 1/4 → α/ln b", "0.027", f"{limit_pi:.4f} (d = 128: {ordered[2]:.4f})", near(limit_pi, 0.027)),
        (
            "granularity: RoPE > ABF > PI 1/4 > PI 1/8",
            "order",
            " > ".join(f"{value:.4f}" for value in ordered),
            "holds" if sorted(ordered, reverse=True) == ordered else "fails",
        ),
        ("ABF changes θ_1 only a little", "6 %", f"{change:.1%}", near(change, 0.06)),
        (
            "Theorem 1, upper bound, all-ones x, ABF",
            f"sin∠ ≤ {printed:.4f} as printed",
            f"sin∠ = {actual:.4f}",
            "holds" if actual <= printed else "misprint: bounds too small by 2, and C_d needs the factor 2/d",
        ),
        (
            "Theorem 1, corrected: min, max(x²)/mean(x²)·c_d",
            "–",
            f"{holding} of 1,000 Gaussian x between the bounds",
            "holds" if holding == 1000 else "fails",
        ),
        (
            "C_d has a limit",
            "0.076, 0.027",
            f"C_128 = {np.sin(abf).sum():.3f} (ABF), {np.sin(pi_4).sum():.3f} (PI 1/4); it grows as d/2",
            "misprint: the limits are those of (2/d)·C_d",
        ),
        (
            "d(f, f̂), minimum over k and j",
            "small, by map",
            "0 for RoPE, PI and ABF: k = j = 0",
            "says nothing; see adaptation above",
        ),
        (
            "b = 500,000 serves 32,768 positions (base bound, 2405.14591)",
            f"{CONTEXT:,}",
            f"{bound:,}; {CONTEXT:,} needs {needed:,.0f} (steps of 5,000)",
            "holds" if bound >= CONTEXT else "not by this criterion",
        ),
        (
            "components trained over a full rotation, L = 4,096 (2310.05209)",
            "92",
            str(critical_dimension(HEAD_DIM, BASE, 4096)),
            "holds" if critical_dimension(HEAD_DIM, BASE, 4096) == 92 else "fails",
        ),
    ]
    return [dict(zip(("statement", "paper", "ours", "verdict"), row, strict=True)) for row in rows]


def near(ours: float, paper: float) -> str:
    return (
        "holds"
        if abs(ours / paper - 1) < 0.01
        else f"holds to {abs(ours / paper - 1):.0%}"
        if abs(ours / paper - 1) < 0.1
        else "fails"
    )
