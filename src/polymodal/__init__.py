"""Polymodal: learn from texts, images, sounds and numbers at once, and know which of them carries the answer.

Names are imported when they are first used, so that ``import polymodal`` and the command line's help cost nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polymodal.bundle import Bundle as Bundle
    from polymodal.data.features import FeatureStore as FeatureStore
    from polymodal.data.table import Table as Table
    from polymodal.errors import BundleError as BundleError
    from polymodal.errors import DataError as DataError
    from polymodal.errors import PolymodalError as PolymodalError
    from polymodal.errors import SpecError as SpecError
    from polymodal.evaluate import Report as Report
    from polymodal.fitting import fit as fit
    from polymodal.inspection import inspect as inspect
    from polymodal.part import Fusion as Fusion
    from polymodal.part import Modality as Modality
    from polymodal.part import Reading as Reading
    from polymodal.part import Task as Task
    from polymodal.part import VectorTask as VectorTask
    from polymodal.report.page import save_page as save_page
    from polymodal.spec import Spec as Spec
    from polymodal.types import Batch as Batch
    from polymodal.types import Fused as Fused
    from polymodal.types import Masked as Masked
    from polymodal.types import Outputs as Outputs

_HOMES = {
    "Bundle": "bundle",
    "FeatureStore": "data.features",
    "Table": "data.table",
    "BundleError": "errors",
    "DataError": "errors",
    "PolymodalError": "errors",
    "SpecError": "errors",
    "Report": "evaluate",
    "fit": "fitting",
    "inspect": "inspection",
    "Fusion": "part",
    "Modality": "part",
    "Reading": "part",
    "Task": "part",
    "VectorTask": "part",
    "save_page": "report.page",
    "Spec": "spec",
    "Batch": "types",
    "Fused": "types",
    "Masked": "types",
    "Outputs": "types",
}

__all__ = [*_HOMES, "load"]
__version__ = "0.1.0"


def load(path: Any, *, device: str = "auto") -> Bundle:
    """Read a bundle; the same as ``Bundle.load`` with a feature store for evaluation."""
    return importlib.import_module("polymodal.bundle").Bundle.load(path, device=device)


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'polymodal' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"polymodal.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
