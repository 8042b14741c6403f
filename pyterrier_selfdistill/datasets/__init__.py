"""Datasets that this package provides to ``pt.get_dataset``."""

from .docstrings import DocstringsDataset, DocstringsDatasetProvider

__all__ = ["DocstringsDataset", "DocstringsDatasetProvider"]
