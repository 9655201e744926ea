"""classify: choose one of several classes."""

from polymodal.tasks.classify.labels import label_text as label_text
from polymodal.tasks.classify.part import Classify as Classify
