"""Writes identities.json and defaults.yaml, which `test_identity.py` holds the code to: python -m tests.stages.pins"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from lit_long.config import CorpusConfig, StageConfig, plain, read_command
from lit_long.positions import SCHEMES, TRANSFORMS, class_defaults
from lit_long.positions.query_scale import FORMS
from lit_long.stages import identity, identity_0_1
from lit_long.stages.identity import COUNTED, KIND_VERSIONS
from lit_long.stages.plan import make_plan

PINS = Path(__file__).with_name("identities.json")
DEFAULTS = Path(__file__).with_name("defaults.yaml")
COMMANDS = (
    *("experiment=position_tiny", "experiment=position_tiny trainer.precision=bf16-mixed", "grid.position=all"),
    *(
        "experiment=position_ablation",
        "experiment=position_ablation scale=laptop_plain",
        "experiment=position_ablation scale=paper",
        "experiment=curriculum",
        "experiment=data_mix",
    ),
    *("experiment=scaling_law", "experiment=document_masking"),
    *(f"experiment={name} scale={scale}" for name in ("giraffe", "base_frequency") for scale in ("laptop", "laptop_plain")),
    *("experiment=instruct_ablation", "experiment=together_32k", "base=train grid.seed=[0,1]"),
    "trainer.on_bad_step=skip trainer.spike=3 data.packing=best_fit",
    "evaluation.tasks=[needle] evaluation.task_samples=4",
    "experiment=base_frequency scale=laptop_plain stages.extend.data.sampling.code.min_tokens=1k",
)


def planned(command: str) -> dict[str, list[str]]:
    """{stage: [identity in 0.1, identity]} of a sweep, as on a machine that computes in fp32 unless the command says otherwise, and where
    nobody has made data yet."""
    words = command.split() + ([] if "precision" in command else ["trainer.precision=32-true"])
    with TemporaryDirectory() as folder, chdir(folder):
        plan = make_plan(read_command([*words, "dry_run=true", "root=nowhere"]))
    return {plan.label(stage): [stage.identity_0_1, stage.identity] for stage in plan.stages}


def same_everywhere(replace: Callable[[Any, str, Any], None]) -> None:
    """What is installed enters the identity of a corpus; not here."""

    def fingerprint(corpus: CorpusConfig, builtin: bool = True) -> dict[str, Any]:
        tokenizer = {"tokenizer": "borrowed"} if corpus.tokenizer else {}
        return tokenizer | ({"packages": sorted(corpus.packages)} if builtin else {})

    for module in (identity, identity_0_1):
        replace(module, "fingerprint", fingerprint)


def defaults() -> dict[str, Any]:
    """Of each kind of stage, its version and the default of every setting that counts for it."""
    settings = counting(StageConfig())
    encoders = {
        f"position.{name}.{key}": plain(value)
        for name, cls in (SCHEMES | TRANSFORMS).items()
        for key, value in class_defaults(cls).items()
    } | {f"query_scale.{name}.{key}": plain(value) for name, cls in FORMS.items() for key, value in class_defaults(cls).items()}
    return {
        kind: {
            "version": version,
            "defaults": {key: value for key, value in settings.items() if key.partition(".")[0] in COUNTED[kind]}
            | (encoders if "position" in COUNTED[kind] else {}),
        }
        for kind, version in KIND_VERSIONS.items()
    }


def counting(value: Any, prefix: str = "") -> dict[str, Any]:
    """{dotted key: default} of the fields that can enter an identity."""
    found = {}
    for field in dataclasses.fields(value):
        if field.metadata.get("identity", True) is not False:
            own = getattr(value, field.name)
            nested = dataclasses.is_dataclass(own)
            found |= counting(own, f"{prefix}{field.name}.") if nested else {prefix + field.name: plain(own)}
    return found


if __name__ == "__main__":
    same_everywhere(setattr)
    PINS.write_text(json.dumps({command: planned(command) for command in COMMANDS}, indent=1) + "\n")
    DEFAULTS.write_text(yaml.safe_dump(defaults(), sort_keys=False))
