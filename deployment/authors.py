"""Checkpoints of the authors' code do not name their method. Their parameter names show it."""

import re

from torch import Tensor


def recognise(weights: dict[str, Tensor]) -> tuple[str, dict]:
    """-> the method, and flags of its group. weights: with the authors' names, without the prefix "module.".

    OKDDip has an attention, ONE has a gate. Other groups count as individual branches: their weights look the same.
    """
    numbers = [re.match(r"(?:stu|Branch|norm_final_|fc_|(?:layer|classifier)\d_)(\d+)\.", key) for key in weights]
    students = {int(number[1]) for number in numbers if number}
    if not students:
        return "baseline", {}
    method = "OKDDip" if "query_weight.weight" in weights else "ONE" if "control_v1.weight" in weights else "Ind"
    network_based = any(key.startswith("stu") for key in weights)
    # bpscale is for CL-ILR. It changes only gradients, and whole networks do not have it.
    return method, {"num_branches": max(students) + 1, "MulStu": network_based, "bpscale": False}


def count_classes(weights: dict[str, Tensor]) -> int:
    """The number of classes: the length of the last classifier's bias. LookupError if there is no classifier."""
    biases = [key for key in weights if re.search(r"(?:^|\.)(?:fc|classifier)[^.]*(?:\.\d+)?\.bias$", key)]
    if not biases:
        raise LookupError("it has no classifier")
    return len(weights[biases[-1]])


def class_numbers(num_classes: int) -> list[str]:
    """Class names for a file without names: "0", "1", ..."""
    return [str(c) for c in range(num_classes)]
