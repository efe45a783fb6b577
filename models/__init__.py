"""Networks, each a trunk and a head; groups of them; and how a group combines its students' logits into targets."""

from .aggregation import AGGREGATIONS
from .architecture import count_batches
from .branches import CLILR, ONE, Branches, OKDDip
from .ffl import FFL
from .kdcl import KDCL, TARGETS
from .official import load_official_state_dict, without_prefixes
from .okdph import OKDPH
from .pcl import PCL
from .registry import NETWORKS, create_model

__all__ = ["AGGREGATIONS", "CLILR", "FFL", "KDCL", "NETWORKS", "OKDPH", "ONE", "PCL", "TARGETS", "Branches", "OKDDip",
           "count_batches", "create_model", "load_official_state_dict", "without_prefixes"]
