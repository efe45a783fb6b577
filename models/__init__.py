"""Networks, each a trunk and a head; groups of them; and how a group combines its students' logits into targets."""

from .aggregation import AGGREGATIONS
from .architecture import Network, synchronise
from .branches import CLILR, ONE, Branches, OKDDip
from .external import default_size
from .ffl import FFL
from .kdcl import KDCL, TARGETS
from .official import load_official_state_dict, without_prefixes
from .okdph import OKDPH
from .pcl import PCL
from .registry import NETWORKS, create_model, find_each, plain_network
from .sources import file_of, in_file, is_external, normalisation

__all__ = ["AGGREGATIONS", "CLILR", "FFL", "KDCL", "NETWORKS", "OKDPH", "ONE", "PCL", "TARGETS", "Branches", "Network",
           "OKDDip", "create_model", "default_size", "file_of", "find_each", "in_file", "is_external",
           "load_official_state_dict", "normalisation", "plain_network", "synchronise", "without_prefixes"]
