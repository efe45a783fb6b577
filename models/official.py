"""Load checkpoints of the authors' code: their parameter names -> ours."""

import re

from torch import Tensor, nn

from .registry import find

AGGREGATION = {  # our module -> theirs
    "aggregation.W_L": "query_weight",
    "aggregation.W_E": "key_weight",
    "gate.linear": "control_v1",
    "gate.norm": "bn_v1",
}


def without_prefixes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights without the prefixes of wrappers: ``module.`` (DataParallel), ``_orig_mod.`` (compile)."""
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", name): value for name, value in weights.items()}


def official_names(key: str, model: nn.Module) -> list[str]:
    """The names of our parameter ``key`` in the authors' checkpoints, the most likely first.

    ValueError if they have no such method, or if the network does not say how they name it.
    """
    module, _, leaf = key.rpartition(".")
    if module in AGGREGATION:
        return [f"{AGGREGATION[module]}.{leaf}"]
    match = re.fullmatch(r"(trunk|head|trunks|heads)\.(?:(\d+)\.)?(.*)", key)
    if match is None:
        raise ValueError(f"the authors' code has no weights like {key!r}")
    part, i, rest = match.groups()
    if i is None:
        return [rest]
    if model.network_based:
        return [f"stu{i}.{rest}"]
    if part == "trunks":
        return [rest]
    for ours, theirs in find(model.name).branch_names.items():
        if rest.startswith(f"{ours}."):
            return [name.format(i=i) + rest[len(ours):] for name in theirs]
    raise ValueError(f"{model.name} does not say how the authors name {rest!r} in a branch")


def load_official_state_dict(model: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Copy weights of the authors' code into ``model``, a network of ``create_model`` or a group.

    state_dict: the weights, or the whole dictionary of a file with an entry ``state_dict``. Prefixes of wrappers are
    removed (``without_prefixes``). Names that the model does not need are skipped. BatchNorm's batch counters may be
    missing, as in the oldest files. ValueError if another weight is missing or has the wrong shape, or
    if the authors' code does not have the method.
    """
    weights = without_prefixes(state_dict.get("state_dict", state_dict))
    ours = model.state_dict()
    for key, value in ours.items():
        names = official_names(key, model)
        name = next((n for n in names if n in weights), None)
        if name is None:
            if key.endswith("num_batches_tracked"):
                continue
            raise ValueError(f"the checkpoint has no {' or '.join(names)!r}, which {model.name} needs")
        if weights[name].shape != value.shape:
            found, needed = tuple(weights[name].shape), tuple(value.shape)
            raise ValueError(f"{name!r} has shape {found} in the checkpoint, but {model.name} needs {needed}")
        ours[key] = weights[name]
    model.load_state_dict(ours)
