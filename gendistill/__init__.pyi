# The public names of gendistill, one a line: what type checkers see, and what __init__.py loads when it is used.
from gendistill.config import DataConfig as DataConfig
from gendistill.config import DistillConfig as DistillConfig
from gendistill.config import EvaluateConfig as EvaluateConfig
from gendistill.config import FinetuneConfig as FinetuneConfig
from gendistill.config import LabelConfig as LabelConfig
from gendistill.config import MatchingConfig as MatchingConfig
from gendistill.config import MinimaxConfig as MinimaxConfig
from gendistill.config import ModelConfig as ModelConfig
from gendistill.config import RefineConfig as RefineConfig
from gendistill.config import SampleConfig as SampleConfig
from gendistill.config import TeacherConfig as TeacherConfig
from gendistill.config.commands import RunConfig as RunConfig
from gendistill.data.dataset import RealData as RealData
from gendistill.data.dataset import Split as Split
from gendistill.data.sources import load_data as load_data
from gendistill.generator.generator import Generator as Generator
from gendistill.networks.soft_labelling import label_set as label_set
from gendistill.networks.soft_labelling import soft_batches as soft_batches
from gendistill.networks.teacher import Teacher as Teacher
from gendistill.networks.teacher import train_teacher as train_teacher
from gendistill.progress import show_progress as show_progress
from gendistill.refine.wmdd import wmdd as wmdd
from gendistill.report.terminal import table as table
from gendistill.stages.distill import distill as distill
from gendistill.stages.evaluate import evaluate as evaluate
from gendistill.stages.evaluate import evaluate_continual as evaluate_continual
from gendistill.stages.finetune import finetune as finetune
from gendistill.stages.refine import refine_set as refine_set
from gendistill.stages.run import run as run
from gendistill.stages.sample import sample_set as sample_set
from gendistill.surrogate.multi_formation import Decoded as Decoded
from gendistill.surrogate.multi_formation import decode as decode
from gendistill.surrogate.set import SurrogateSet as SurrogateSet

__version__: str
