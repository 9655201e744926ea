"""A bundle as ONNX graphs with everything that somebody without Polymodal needs to run them."""

from polymodal.exporting.export import Export as Export
from polymodal.exporting.export import export as export
