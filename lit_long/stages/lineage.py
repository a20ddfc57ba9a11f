"""Where a model comes from: the chain of stages behind it, as the model card of an exported folder tells it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_long import __version__
from lit_long.config import StageConfig, UserError, plain
from lit_long.config.updates import number_of_updates
from lit_long.stages.folder import read_result, read_stage
from lit_long.stages.resolve import OPTIMIZERS

MLFLOW_RUN = "mlflow.json"  # the stage's run in its sweep's tracker; the name is older than the second tracker


def stage_of(checkpoint: Path) -> Path:
    """The folder of the stage that ``checkpoint`` (that folder, or a file or folder inside) belongs to."""
    for folder in (checkpoint, *checkpoint.parents):
        if (folder / "stage.yaml").is_file():
            return folder
    raise UserError(f"{checkpoint}: lies in no stage folder (stage.yaml), so nothing says what model it is")


def list_ancestors(folder: Path) -> list[tuple[Path, StageConfig, Path | None]]:
    """The stages that the model went through, first one first: folder, settings, data store."""
    config, store, parent = read_stage(folder)
    return [*(list_ancestors(parent) if parent else []), (folder, config, store)]


def model_card(name: str, folder: Path, checkpoint: Path) -> str:
    """README.md of the exported model: what it is, how it was made, how to load it.

    Args:
        folder: the training stage.
        checkpoint: what was exported of it.
    """
    chain = list_ancestors(folder)
    config = chain[-1][1]
    position = ", ".join(f"{key} {value}" for key, value in config.position.items() if value is not None)
    start = chain[0][1].model.init
    rows = [describe_stage(*stage) for stage in chain]
    titles = ("stage", "tokens", "context", "positional encoder", "optimiser", "data digest", "tracked run")
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [llama, long-context, lit-long]
---

# {name}

A Llama made with lit-long {__version__}, for contexts of {config.context:,} tokens. Positional encoder: {position}.
Exported from `{checkpoint.name}` of stage `{folder.name}`{f"; training started from the weights of `{start}`" if start else ""}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("FOLDER"), AutoTokenizer.from_pretrained("FOLDER")
```

## How it was made

| {" | ".join(titles)} |
|{"---|" * len(titles)}
{chr(10).join(f"| {' | '.join(cells)} |" for cells in rows)}

{describe_result(folder)}
The complete settings of the last stage:

```json
{json.dumps({key: plain(getattr(config, key)) for key in ("model", "position", "layers", "data", "optim", "trainer")}, indent=1)}
```
"""


def describe_stage(folder: Path, config: StageConfig, store: Path | None) -> tuple[str, ...]:
    """One stage of the card's table."""
    digest = read_result(store)["digest"][:16] if store and (store / "result.json").is_file() else "unknown"
    optimiser = f"{OPTIMIZERS[config.optim.name]}, peak {config.optim.lr:g}, {config.tokens_per_update:,} tokens an update, seed {config.seed}"
    scheme = f"{config.position['scheme']} " + (f"(base {config.position['base']:g})" if "base" in config.position else "")
    run = mlflow_run(folder)
    found = f"`{run['run']}` ({run['experiment']})" if run else "not recorded"
    tokens = config.tokens if config.branch == 1 else number_of_updates(config) * config.tokens_per_update
    return (f"`{folder.name}`", f"{tokens:,}", f"{config.context:,}", scheme, optimiser, f"`{digest}`", found)


def mlflow_run(folder: Path) -> dict[str, Any] | None:
    """``run``, ``experiment`` and ``uri`` of the stage in its tracker, if it was recorded."""
    file = folder / MLFLOW_RUN
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def describe_result(folder: Path) -> str:
    """What the stage measured at its end; nothing of an unfinished one."""
    if not (folder / "DONE").is_file():
        return "The stage had not ended when this was exported.\n"
    result = read_result(folder)
    losses = ", ".join(f"{domain} {value:.4f}" for domain, value in result.get("validation", {}).items())
    return (
        f"Measured at the end: training loss {result['train_loss']:.4f} nats a token; validation loss {losses or 'not measured'}. "
        f"{result['updates']:,} updates on {result['machine']}.\n"
    )
