"""A model as one ONNX graph, and as a function that runs it, which costs a CPU a fraction of what eager torch does."""

from polymodal.tracing.answer import Answerer as Answerer
from polymodal.tracing.answer import answerer as answerer
from polymodal.tracing.graph import Port as Port
from polymodal.tracing.graph import Traced as Traced
from polymodal.tracing.graph import flat as flat
from polymodal.tracing.graph import trace as trace
