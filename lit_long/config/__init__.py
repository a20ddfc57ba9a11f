"""Settings: their typed schema (schema.py), the check of values against it (typed.py) and their composition (compose.py).

Nothing here imports torch or lightning.
"""

from lit_long.config.compose import (
    Composer,
    Layers,
    compose_position,
    compose_sweep,
    option_names,
    parse_words,
    project_root,
    read_layers,
)
from lit_long.config.report import MeasuredConfig, PublishedConfig, ReportConfig
from lit_long.config.schema import (
    AdapterConfig,
    CorpusConfig,
    CurriculumConfig,
    DataConfig,
    EvaluationConfig,
    InstructConfig,
    LauncherConfig,
    ModelConfig,
    OptimConfig,
    SamplingConfig,
    SourceConfig,
    StageConfig,
    SweepConfig,
    TrainerConfig,
    ValidationConfig,
)
from lit_long.config.tracking import TrackingConfig
from lit_long.config.typed import NOT_A_SETTING, Unfit, UserError, advising, check, differing, nearest, plain, typed

__all__ = [
    "NOT_A_SETTING",
    "AdapterConfig",
    "Composer",
    "CorpusConfig",
    "CurriculumConfig",
    "DataConfig",
    "EvaluationConfig",
    "InstructConfig",
    "LauncherConfig",
    "Layers",
    "MeasuredConfig",
    "ModelConfig",
    "OptimConfig",
    "PublishedConfig",
    "ReportConfig",
    "SamplingConfig",
    "SourceConfig",
    "StageConfig",
    "SweepConfig",
    "TrackingConfig",
    "TrainerConfig",
    "Unfit",
    "UserError",
    "ValidationConfig",
    "advising",
    "check",
    "compose_position",
    "compose_sweep",
    "differing",
    "nearest",
    "option_names",
    "parse_words",
    "plain",
    "project_root",
    "read_layers",
    "typed",
]
