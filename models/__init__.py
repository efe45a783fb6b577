"""Networks (trunk + head), groups of them, and how a group aggregates what its students know."""

from .branches import CLILR, ONE, Branches, OKDDip
from .official import load_official_state_dict
from .registry import NETWORKS, create_model

__all__ = ["CLILR", "NETWORKS", "ONE", "Branches", "OKDDip", "create_model", "load_official_state_dict"]
