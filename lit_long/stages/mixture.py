"""What data a stage uses: its sources settled, and the built-in corpus beside them or not.

With sources the domains are the sources' names. Naming them is enough: as long as no weight is given to one of them, they take the
mixture over in equal shares, and the built-in corpus with its weights is left out. Once a source has a weight the weights count as they
are written, and the built-in corpus is there as well if they name one of its domains, with 0 too (it is then only measured on).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lit_long.config import DataConfig, EvaluationConfig, SourceConfig, UserError
from lit_long.data.builtin_corpus import DOMAINS
from lit_long.data.conversations import template_of
from lit_long.data.sources import resolve_source
from lit_long.data.synthetic import DOMAIN as DOCS
from lit_long.data.synthetic import SYNTHETIC
from lit_long.data.tokenizer import borrowed_template

BUILTIN = (*DOMAINS, *SYNTHETIC)


def settle_data(
    data: DataConfig, where: str, found: dict[str, SourceConfig], look: Callable[..., Any] = lambda at, *of: at(*of)
) -> DataConfig:
    """The data with sources and weights settled.

    Args:
        found: sources that were settled before, filled in here: files are looked at once for all stages of a sweep.
        look: calls what looks at files; None from it leaves a source as it is written.

    Raises:
        UserError: a source that takes a name of the built-in corpus, or as `resolve_source` does.
    """
    if not data.sources:
        return data
    settled = {}
    for name, source in data.sources.items():
        if name in BUILTIN:
            raise UserError(
                f"{where}: data.sources.{name} has a name of the built-in corpus ({', '.join(BUILTIN)}); call it otherwise"
            )
        key = f"{name} {source}"
        if key not in found:
            found[key] = look(resolve_source, name, source) or source
        settled[name] = found[key]
    return replace(data, sources=settled, weights=settled_weights(data))


def settled_weights(data: DataConfig) -> dict[str, float]:
    """The weights; equal shares of the sources, where there are some and no weight names one of them."""
    return data.weights if not data.sources or set(data.weights) & set(data.sources) else dict.fromkeys(data.sources, 1.0)


def uses_builtin(data: DataConfig) -> bool:
    """Whether the built-in corpus is a part of the data, which are settled."""
    return not data.sources or any(name in BUILTIN for name in data.weights)


def mixable(data: DataConfig) -> list[str]:
    """What the weights may name."""
    return [*data.sources, *(BUILTIN if uses_builtin(data) else ())]


def measurable(data: DataConfig) -> list[str]:
    """Domains with held-out documents."""
    own = [name for name, source in data.sources.items() if source.validation_share > 0]
    return [*own, *(DOMAINS if uses_builtin(data) else ())]


def settle_evaluation(evaluation: EvaluationConfig, data: DataConfig) -> EvaluationConfig:
    """Where an experiment measures on the built-in corpus and that was replaced by sources, measure on these."""
    domains, retrieval = evaluation.domains, evaluation.retrieval_domain
    if not uses_builtin(data) and domains and all(name in DOMAINS for name in domains):
        domains = measurable(data)
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
