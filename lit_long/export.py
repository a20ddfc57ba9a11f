"""Export a checkpoint to a Hugging Face folder, which transformers 4 and 5, and tools that read their format, can load.

    python -m lit_long.export checkpoint=runs/stages/train-… out=my-model            a finished stage
    python -m lit_long.export checkpoint=runs/stages/train-…/checkpoints/step-….ckpt out=my-model        a resume point, sharded or not
    python -m lit_long.export checkpoint=FILE.gguf out=my-model         pretrained weights, in any format that model.init reads
    … dtype=bfloat16        auto (as they are stored) · float32 · bfloat16 · float16
    … adapter=true          of a stage trained with an adapter only that, as peft loads it; not merged
    … name=NAME             its name in the model card (default: that of the folder)

Writes weights, config.json, the tokenizer with its chat template, a model card that tells where the model comes from, and, of a stage that
started from nothing, its settings (recipe.json). The folder appears whole or not at all. Positional encoders that transformers cannot compute are refused. Exit codes: 0 written, 2 bad input.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lit_long.config import UserError, parse_words, typed
from lit_long.config.output_folder import check_writable
from lit_long.config.ranges import FilePath
from lit_long.terminal import answer, run_command


@dataclass
class ExportConfig:
    checkpoint: FilePath = ""
    out: FilePath = ""
    dtype: str = "auto"
    name: str = ""
    adapter: bool = False


def main(argv: list[str]) -> int:
    return answer(argv, __doc__, run)


def run(argv: list[str]) -> None:
    config = typed(ExportConfig, parse_words(argv, ExportConfig), "command line")
    for key in ("checkpoint", "out"):
        if not getattr(config, key):
            raise UserError(f"command line: {key}=… is missing (see --help)")
    export(config)
    print(f"written  {config.out}")


def export(config: ExportConfig) -> None:
    """Write ``config.out``. Raises UserError for what cannot be read or expressed."""
    out = Path(config.out).expanduser()
    check_writable(out.parent, "out")
    checkpoint = Path(config.checkpoint).expanduser()
    places = (checkpoint, *checkpoint.resolve().parents)
    ours = checkpoint.exists() and any((folder / "stage.yaml").is_file() for folder in places)
    (export_stage if ours or config.adapter else export_external)(config, out)


def export_stage(config: ExportConfig, out: Path) -> None:
    """A checkpoint of one of our stages."""
    from lit_long.data.token_store import model_tokenizer, open_store
    from lit_long.pretrained.export import copy_adapter, write_huggingface
    from lit_long.pretrained.weights import WEIGHTS, read_checkpoint
    from lit_long.stages.archive import RECIPE
    from lit_long.stages.folder import read_stage
    from lit_long.stages.identity import recipe
    from lit_long.stages.lineage import model_card, stage_of

    checkpoint = Path(config.checkpoint).expanduser().resolve()
    folder = stage_of(checkpoint)
    stage, store, parent = read_stage(folder)
    if stage.kind != "train":
        raise UserError(f"{folder}: a stage of kind {stage.kind} holds no model; name a train stage")
    if config.adapter:
        copy_adapter(folder, out)
        return
    weights = checkpoint / WEIGHTS if checkpoint == folder else checkpoint
    if not weights.exists():
        raise UserError(
            f"{weights}: is not there; the stage has not ended, so name one of its checkpoints/, or run the sweep again"
        )
    tokenizer = model_tokenizer(open_store(store), stage.data.corpus)
    card = model_card(config.name or out.name, folder, weights)
    beside = {} if parent else {RECIPE: json.dumps(recipe(stage), indent=1) + "\n"}
    write_huggingface(
        out,
        read_checkpoint(weights),
        stage.model,
        stage.position,
        stage.context,
        tokenizer,
        card,
        config.dtype,
        beside,
        stage.layers,
    )


def export_external(config: ExportConfig, out: Path) -> None:
    """Pretrained weights, in another format."""
    from lit_long.pretrained.export import write_huggingface
    from lit_long.pretrained.open import open_named
    from lit_long.stages.folder import WHERE_LISTED

    source = open_named("checkpoint", config.checkpoint, WHERE_LISTED)
    shape, tokenizer = source.shape, source.tokenizer()
    card = (
        f"---\nlibrary_name: transformers\n---\n\n# {config.name or out.name}\n\n"
        f"The weights of `{config.checkpoint}`, converted by lit-long. sha256 of their content: `{source.digest}`.\n"
    )
    write_huggingface(
        out, source.tensors(), shape, source.position, shape.context, tokenizer, card, config.dtype, layers=source.layers
    )


if __name__ == "__main__":
    run_command(main)
