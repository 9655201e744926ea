"""The kinds of input. A part is known once its file is imported: to add one, write its file and name it here."""

from polymodal.modalities.audio import Audio as Audio
from polymodal.modalities.image import Image as Image
from polymodal.modalities.prompt import Prompt as Prompt
from polymodal.modalities.table import Tabular as Tabular
from polymodal.modalities.text import Text as Text
from polymodal.modalities.words import Words as Words
