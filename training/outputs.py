"""Names of measured outputs and of their metrics, spelled and parsed here only. Needs no PyTorch.

A method measures one or more outputs: each student, the leader, ensembles. The name of an output is the prefix of its
metrics in metrics.jsonl, test_best_metrics.json and TensorBoard. The names are those of the authors' code:

    test_accTop1        ENSEMBLE     the ensemble of a group, or the only network
    stu_test_accTop1    LEADER       the group leader
    stu0test_accTop1    student(0)   the first student
    mean_test_accTop1   MEAN         the mean of the students' accuracies (not an output of its own)
    gate_test_accTop1   GATE         ONE's gated ensemble
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

ENSEMBLE = NETWORK = ""
LEADER = "stu_"
MEAN = "mean_"
GATE = "gate_"
PHASES = ("train", "val", "test")
TENSORBOARD_FOLDERS = {ENSEMBLE: ".", LEADER: "B"}  # where the curves of these outputs are, as in the original


def student(i: int) -> str:
    """The output of student i, counted from 0."""
    return f"stu{i}"


def student_number(output: str) -> int | None:
    """The number of a student's output; None for every other output, the leader's among them."""
    match = re.fullmatch(r"stu(\d+)", output)
    return int(match[1]) if match else None


def students_of(outputs: Iterable[str]) -> list[str]:
    """The outputs that are numbered students of a group."""
    return [output for output in outputs if student_number(output) is not None]


def metric(output: str, phase: str, name: str) -> str:
    """metric("stu_", "test", "accTop1") -> "stu_test_accTop1"."""
    return f"{output}{phase}_{name}"


class Metric(NamedTuple):
    """The parts of a metric's name. output and phase are None for metrics of the whole model ("dist", "lr")."""

    output: str | None
    phase: str | None
    name: str


def parse(text: str) -> Metric:
    """parse("stu_test_accTop1") -> ("stu_", "test", "accTop1"); parse("dist") -> (None, None, "dist")."""
    match = re.fullmatch(rf"(.*?)({'|'.join(PHASES)})_(.*)", text)
    return Metric(*match.groups()) if match else Metric(None, None, text)


def mean_title(outputs: dict[str, str]) -> str | None:
    """What tables call MEAN: "mean of the peers" for students titled "peer 0", ...; None without students."""
    students = students_of(outputs)
    return f"mean of the {outputs[students[0]].split()[0]}s" if students else None
