"""Dense retrievers trained by self-distillation with adaptive relevance margins, for PyTerrier."""

__version__ = "0.1.0"
