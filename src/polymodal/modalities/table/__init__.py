"""Columns of a table as one input: numbers, categories, booleans and dates."""

from polymodal.modalities.table.augment import TabularAugmentation
from polymodal.modalities.table.part import Scale, Tabular

__all__ = ["Scale", "Tabular", "TabularAugmentation"]
