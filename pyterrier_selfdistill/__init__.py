"""Train dense retrievers by self-distillation with adaptive relevance margins in PyTerrier."""

from .data.negatives import Negatives, split_queries
from .encoder.biencoder import SelfDistillBiEncoder
from .index.files import EncoderMismatchError
from .index.index import SelfDistillIndex
from .index.ray import RayIndexer
from .index.shards import ShardedIndex
from .losses import AdaptiveMarginLoss, SelfDistillationLoss, SoftmaxLoss
from .report.comparison import Comparison, compare
from .training.evaluation import RetrievalEvaluator
from .training.trainer import NotFittedError, SelfDistillTrainer
from .utils.folders import FolderInUseError

__version__ = "0.1.0"
__all__ = [
    "AdaptiveMarginLoss",
    "Comparison",
    "EncoderMismatchError",
    "FolderInUseError",
    "Negatives",
    "NotFittedError",
    "RayIndexer",
    "RetrievalEvaluator",
    "SelfDistillBiEncoder",
    "SelfDistillIndex",
    "SelfDistillTrainer",
    "SelfDistillationLoss",
    "ShardedIndex",
    "SoftmaxLoss",
    "compare",
    "split_queries",
]
