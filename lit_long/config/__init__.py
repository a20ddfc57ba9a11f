"""Settings: their typed schema (schema.py), what a command says (layers.py), its composition to complete settings (compose.py) and the check of
values against the schema (typed.py).

Nothing here imports torch or lightning.
"""

from lit_long.config.compose import Composer, compose_data, compose_model, compose_position, compose_sweep, parse_model_words
from lit_long.config.layers import Layers, option_names, parse_words, project_root, read_layers
from lit_long.config.schema import (
    AdapterConfig,
    CorpusConfig,
    CurriculumConfig,
    DataConfig,
    EvaluationConfig,
    InstructConfig,
    LauncherConfig,
    MeasuredConfig,
    ModelConfig,
    OptimConfig,
    PublishedConfig,
    ReportConfig,
    SamplingConfig,
    SourceConfig,
    StageConfig,
    SweepConfig,
    TrackingConfig,
    TrainerConfig,
    ValidationConfig,
)
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
    "compose_data",
    "compose_model",
    "compose_position",
    "compose_sweep",
    "differing",
    "nearest",
    "option_names",
    "parse_model_words",
    "parse_words",
    "plain",
    "project_root",
    "read_layers",
    "typed",
]
