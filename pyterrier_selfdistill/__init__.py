"""Dense retrievers trained by self-distillation with adaptive relevance margins, for PyTerrier."""

from .biencoder import SelfDistillBiEncoder
from .losses import AdaptiveMarginLoss, SelfDistillationLoss
from .trainer import SelfDistillTrainer
from .triples import Negatives, split_queries
from .validation import RetrievalEvaluator

__version__ = "0.1.0"
__all__ = [
    "AdaptiveMarginLoss",
    "Negatives",
    "RetrievalEvaluator",
    "SelfDistillBiEncoder",
    "SelfDistillTrainer",
    "SelfDistillationLoss",
    "split_queries",
]
