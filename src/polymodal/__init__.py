"""Polymodal: learn from texts, images, sounds and numbers at once, and know which of them carries the answer.

Names are imported when they are first used, so that ``import polymodal`` and the command line's help cost nothing.
Where torch is not loaded yet and the environment does not say otherwise, OpenMP threads are told to sleep while they
wait: on a busy machine, spinning ones cost many times the work itself.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polymodal.asking import talk as talk
    from polymodal.bundle import Bundle as Bundle
    from polymodal.data.features import FeatureStore as FeatureStore
    from polymodal.data.table import Table as Table
    from polymodal.data.table import read_conll as read_conll
    from polymodal.data.write import check_ending as check_ending
    from polymodal.data.write import write_table as write_table
    from polymodal.diagnose.run import Diagnosis as Diagnosis
    from polymodal.embedding.embed import embed as embed
    from polymodal.embedding.vectors import Embeddings as Embeddings
    from polymodal.errors import BundleError as BundleError
    from polymodal.errors import DataError as DataError
    from polymodal.errors import PolymodalError as PolymodalError
    from polymodal.errors import SpecError as SpecError
    from polymodal.evaluate import Report as Report
    from polymodal.exporting.export import Export as Export
    from polymodal.exporting.export import export as export
    from polymodal.fitting import fit as fit
    from polymodal.improving.run import Improvement as Improvement
    from polymodal.improving.run import improve as improve
    from polymodal.indexing.index import Index as Index
    from polymodal.indexing.labels import ZeroShot as ZeroShot
    from polymodal.indexing.labels import zero_shot as zero_shot
    from polymodal.inspection import inspect as inspect
    from polymodal.metrics.texts import text_scores as text_scores
    from polymodal.nn.weights import PACKAGED as PACKAGED
    from polymodal.part import Fusion as Fusion
    from polymodal.part import Modality as Modality
    from polymodal.part import Reading as Reading
    from polymodal.quantising import Quantisation as Quantisation
    from polymodal.quantising import quantise as quantise
    from polymodal.ranks import Ranks as Ranks
    from polymodal.report.diagnosis import save_diagnosis as save_diagnosis
    from polymodal.report.improvement import save_improvement as save_improvement
    from polymodal.report.page import save_page as save_page
    from polymodal.searching.result import SearchResult as SearchResult
    from polymodal.searching.run import search as search
    from polymodal.serving import serve as serve
    from polymodal.spec import Spec as Spec
    from polymodal.task import Task as Task
    from polymodal.task import VectorTask as VectorTask
    from polymodal.tracking import Tracker as Tracker
    from polymodal.trials.load import LoadReport as LoadReport
    from polymodal.trials.trial import load_test as load_test
    from polymodal.types import Batch as Batch
    from polymodal.types import Fused as Fused
    from polymodal.types import Masked as Masked
    from polymodal.types import Outputs as Outputs
    from polymodal.verifying import Verification as Verification
    from polymodal.verifying import verify as verify

_HOMES = {
    "Export": "exporting.export",
    "export": "exporting.export",
    "Quantisation": "quantising",
    "quantise": "quantising",
    "LoadReport": "trials.load",
    "load_test": "trials.trial",
    "serve": "serving",
    "Verification": "verifying",
    "verify": "verifying",
    "Tracker": "tracking",
    "search": "searching.run",
    "SearchResult": "searching.result",
    "save_improvement": "report.improvement",
    "save_diagnosis": "report.diagnosis",
    "improve": "improving.run",
    "Improvement": "improving.run",
    "Diagnosis": "diagnose.run",
    "Embeddings": "embedding.vectors",
    "embed": "embedding.embed",
    "Index": "indexing.index",
    "ZeroShot": "indexing.labels",
    "zero_shot": "indexing.labels",
    "talk": "asking",
    "Bundle": "bundle",
    "FeatureStore": "data.features",
    "Table": "data.table",
    "read_conll": "data.table",
    "check_ending": "data.write",
    "write_table": "data.write",
    "BundleError": "errors",
    "DataError": "errors",
    "PolymodalError": "errors",
    "SpecError": "errors",
    "Report": "evaluate",
    "fit": "fitting",
    "inspect": "inspection",
    "text_scores": "metrics.texts",
    "PACKAGED": "nn.weights",
    "Fusion": "part",
    "Modality": "part",
    "Reading": "part",
    "Task": "task",
    "VectorTask": "task",
    "Ranks": "ranks",
    "save_page": "report.page",
    "Spec": "spec",
    "Batch": "types",
    "Fused": "types",
    "Masked": "types",
    "Outputs": "types",
}

__all__ = [*_HOMES, "load"]  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")


def load(path: Any, *, device: str = "auto") -> Bundle:
    """Read a bundle that `Bundle.save` wrote; `Bundle.evaluate` then keeps features on disk, as `fit` does."""
    import polymodal as lazy

    return lazy.Bundle.load(path, device=device, store=lazy.FeatureStore())


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'polymodal' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"polymodal.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
