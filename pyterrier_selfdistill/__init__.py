"""Dense retrievers trained by self-distillation with adaptive relevance margins, for PyTerrier."""

from .biencoder import SelfDistillBiEncoder
from .index import EncoderMismatchError, SelfDistillIndex
from .losses import AdaptiveMarginLoss, SelfDistillationLoss
from .trainer import SelfDistillTrainer
from .triples import Negatives, split_queries
from .validation import RetrievalEvaluator

__version__ = "0.1.0"
__all__ = [
    "AdaptiveMarginLoss",
    "EncoderMismatchError",
    "Negatives",
    "RetrievalEvaluator",
    "SelfDistillBiEncoder",
    "SelfDistillIndex",
    "SelfDistillTrainer",
    "SelfDistillationLoss",
    "split_queries",
]
