"""All settings of a run, and the functions that read them."""

from retrieval.config.run_folder import read_config
from retrieval.config.settings import (
    AudioEncoderConfig,
    AugmentationConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LearningRates,
    LossConfig,
    OptimizerConfig,
    PoolingConfig,
    ScheduleConfig,
    Section,
    TextEncoderConfig,
    TrainConfig,
    config_differences,
    load_config,
    parse_config,
)

__all__ = [
    "AudioEncoderConfig",
    "AugmentationConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "LearningRates",
    "LossConfig",
    "OptimizerConfig",
    "PoolingConfig",
    "ScheduleConfig",
    "Section",
    "TextEncoderConfig",
    "TrainConfig",
    "config_differences",
    "load_config",
    "parse_config",
    "read_config",
]
