"""One typed configuration. Defaults < profile (YAML) < `section.key=value`.

Each stage receives only its own section, so that changing one setting reruns only what depends on it. Nothing here
imports torch: the command line must start fast.
"""

from calm_core.config.autoencoder import (
    AUTOENCODERS,
    AutoencoderConfig,
    AutoencoderModelConfig,
    MlpAutoencoderConfig,
    ReadingAutoencoderConfig,
    ResidualAutoencoderConfig,
)
from calm_core.config.base import Section, SettingError, parse_section, setting_names
from calm_core.config.cluster import ClusterConfig
from calm_core.config.data import DataConfig, TokenizerConfig
from calm_core.config.decoder_losses import (
    DECODER_LOSSES,
    DecoderBrierConfig,
    DecoderCrossEntropyConfig,
    DecoderLossConfig,
)
from calm_core.config.distillation import DistillationConfig
from calm_core.config.evaluation import EvaluationConfig
from calm_core.config.heads import (
    HEADS,
    DiffusionHeadConfig,
    EnergyHeadConfig,
    FlowHeadConfig,
    HeadConfig,
    MixtureHeadConfig,
    ResidualHeadConfig,
)
from calm_core.config.language_model import (
    BackboneConfig,
    CalmConfig,
    CalmModelConfig,
    LanguageModelTrainingConfig,
    TransformerConfig,
    TransformerModelConfig,
)
from calm_core.config.registry import RegistryConfig
from calm_core.config.retraining import RetrainingConfig
from calm_core.config.run import Config, resolve_config
from calm_core.config.training import TrainingConfig

__all__ = [
    "AUTOENCODERS",
    "DECODER_LOSSES",
    "HEADS",
    "AutoencoderConfig",
    "AutoencoderModelConfig",
    "BackboneConfig",
    "CalmConfig",
    "CalmModelConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "DecoderBrierConfig",
    "DecoderCrossEntropyConfig",
    "DecoderLossConfig",
    "DiffusionHeadConfig",
    "DistillationConfig",
    "EnergyHeadConfig",
    "EvaluationConfig",
    "FlowHeadConfig",
    "HeadConfig",
    "LanguageModelTrainingConfig",
    "MixtureHeadConfig",
    "MlpAutoencoderConfig",
    "ReadingAutoencoderConfig",
    "RegistryConfig",
    "ResidualAutoencoderConfig",
    "ResidualHeadConfig",
    "RetrainingConfig",
    "Section",
    "SettingError",
    "TokenizerConfig",
    "TrainingConfig",
    "TransformerConfig",
    "TransformerModelConfig",
    "parse_section",
    "resolve_config",
    "setting_names",
]
