"""The kinds of fusion. A part is known once its file is imported: to add one, write its file and name it here."""

from polymodal.fusions.attention import Attention as Attention
from polymodal.fusions.bottleneck import Bottleneck as Bottleneck
from polymodal.fusions.concat import Concat as Concat
from polymodal.fusions.cross import Cross as Cross
from polymodal.fusions.experts import Experts as Experts
from polymodal.fusions.film import Film as Film
from polymodal.fusions.gated import Gated as Gated
from polymodal.fusions.hadamard import Hadamard as Hadamard
from polymodal.fusions.pool import Pool as Pool
from polymodal.fusions.tensor import TensorProduct as TensorProduct
from polymodal.fusions.vote import Vote as Vote
from polymodal.fusions.weighted import Weighted as Weighted
