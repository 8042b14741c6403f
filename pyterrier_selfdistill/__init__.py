"""Dense retrievers trained by self-distillation with adaptive relevance margins, for PyTerrier."""

from .biencoder import SelfDistillBiEncoder
from .calibrated_loss import CalibratedLoss
from .comparison.comparison import Comparison, compare
from .data.negatives import Negatives
from .data.splits import split_queries
from .identity import EncoderMismatchError
from .index import SelfDistillIndex
from .io import FolderInUseError
from .losses import AdaptiveMarginLoss
from .nested_loss import NestedDimensionsLoss
from .progress import adapt_to_logs
from .ray_indexing import RayIndexer
from .sharded_index import ShardedIndex
from .text_losses import SelfDistillationLoss
from .training.evaluation import RetrievalEvaluator
from .training.fitted import NotFittedError
from .training.trainer import SelfDistillTrainer

adapt_to_logs()

__version__ = "0.1.0"
__all__ = [
    "AdaptiveMarginLoss",
    "CalibratedLoss",
    "Comparison",
    "EncoderMismatchError",
    "FolderInUseError",
    "Negatives",
    "NestedDimensionsLoss",
    "NotFittedError",
    "RayIndexer",
    "RetrievalEvaluator",
    "SelfDistillBiEncoder",
    "SelfDistillIndex",
    "SelfDistillTrainer",
    "SelfDistillationLoss",
    "ShardedIndex",
    "compare",
    "split_queries",
]
