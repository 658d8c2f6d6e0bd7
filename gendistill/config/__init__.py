"""Every stage's options: one frozen dataclass drives Python, YAML and flags. No torch in here.

Defaults are those of the embedded digits run; configs/*.yaml say what was measured with them.
"""

from gendistill.config.base import (
    Compile,
    Format,
    Precision,
    Projection,
    Sizes,
    as_tuple,
    ipc_sizes,
    require,
    stage_options,
    to_dict,
)
from gendistill.config.data import DataConfig
from gendistill.config.distill import (
    Augmentation,
    Distance,
    DistillConfig,
    MatchingConfig,
    MatchingMethod,
    MatchingStart,
    NetworkTraining,
    SelectionKind,
)
from gendistill.config.evaluate import FEATURES, Baseline, ContinualConfig, EvaluateConfig, Labels, Protocol, Task
from gendistill.config.generator import (
    Adaptation,
    Architecture,
    FinetuneConfig,
    MinimaxConfig,
    ModelConfig,
    Prediction,
    Reduction,
    Tracker,
    Weighting,
)
from gendistill.config.label import LabelConfig, LabelMode
from gendistill.config.refine import (
    BarycenterSolver,
    BarycenterWeights,
    BatchNormLoss,
    FeatureLoss,
    ObjectiveConfig,
    RefineConfig,
    WmddConfig,
    WmddStart,
)
from gendistill.config.sample import Guidance, SampleConfig, Scheduler, Start
from gendistill.config.teacher import TeacherConfig

__all__ = [
    "FEATURES",
    "Adaptation",
    "Architecture",
    "Augmentation",
    "BarycenterSolver",
    "BarycenterWeights",
    "Baseline",
    "BatchNormLoss",
    "Compile",
    "ContinualConfig",
    "DataConfig",
    "Distance",
    "DistillConfig",
    "EvaluateConfig",
    "FeatureLoss",
    "FinetuneConfig",
    "Format",
    "Guidance",
    "LabelConfig",
    "LabelMode",
    "Labels",
    "MatchingConfig",
    "MatchingMethod",
    "MatchingStart",
    "MinimaxConfig",
    "ModelConfig",
    "NetworkTraining",
    "ObjectiveConfig",
    "Precision",
    "Prediction",
    "Projection",
    "Protocol",
    "Reduction",
    "RefineConfig",
    "SampleConfig",
    "Scheduler",
    "SelectionKind",
    "Sizes",
    "Start",
    "Task",
    "TeacherConfig",
    "Tracker",
    "Weighting",
    "WmddConfig",
    "WmddStart",
    "as_tuple",
    "ipc_sizes",
    "require",
    "stage_options",
    "to_dict",
]
