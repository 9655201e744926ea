"""The kinds of output. A part is known once its file is imported: to add one, write its file and name it here."""

from polymodal.tasks.classify import Classify
from polymodal.tasks.generate import Generate
from polymodal.tasks.match import Match
from polymodal.tasks.multilabel import Multilabel
from polymodal.tasks.regress import Regress
from polymodal.tasks.tag import Tag

__all__ = ["Classify", "Generate", "Match", "Multilabel", "Regress", "Tag"]
