"""The names of measured outputs and of their metrics. Only this file composes and parses them. Needs no PyTorch.

A method measures one or more outputs: each student, the leader, ensembles. The name of an output is the prefix of its
metrics in metrics.jsonl, test_best_metrics.json and TensorBoard. The names are those of the authors' code:

    test_accTop1        WHOLE        the whole model: the ensemble of a group, or the only network
    stu_test_accTop1    LEADER       the network that is deployed, if it is not one of the students: OKDDip's group
                                     leader, PCL's mean peer 0, OKDPH's hybrid
    stu0test_accTop1    student(0)   the first student
    mean_test_accTop1   MEAN         the mean of the students' accuracies (not an output of its own)
    gate_test_accTop1   GATE         ONE's gated ensemble
    fused_test_accTop1  FUSED        a classifier of all students' features: FFL's fused one, PCL's peer ensemble
    ema0test_accTop1    ema(0)       PCL's first mean peer
    ema_test_accTop1    EMA_MEAN     the mean of the mean peers' accuracies (not an output of its own)
    ema_ensemble_test_accTop1        EMA_ENSEMBLE: the ensemble of the mean peers
"""

import re
from collections.abc import Callable, Iterable

WHOLE = ""
LEADER = "stu_"
MEAN = "mean_"
GATE = "gate_"
FUSED = "fused_"
EMA_MEAN = "ema_"
EMA_ENSEMBLE = "ema_ensemble_"
PHASES = ("train", "val", "test")
TENSORBOARD_FOLDERS = {WHOLE: ".", LEADER: "B"}  # where the curves of these outputs are, as in the original


def student(i: int) -> str:
    """The output of student i, counted from 0."""
    return f"stu{i}"


def ema(i: int) -> str:
    """The output of mean peer i: the exponential moving average of peer i."""
    return f"ema{i}"


def group_outputs(z, name: Callable[[int], str] = student, ensemble: str = WHOLE) -> dict:
    """Logits z of m students [B, m, C] -> the logits of each [B, C], by ``name(i)``, and of their ensemble."""
    return {name(i): z_i for i, z_i in enumerate(z.unbind(1))} | {ensemble: z.mean(1)}


def student_number(output: str) -> int | None:
    """The number of a student's output; None for every other output, the leader's among them."""
    match = re.fullmatch(r"stu(\d+)", output)
    return int(match[1]) if match else None


def students_of(outputs: Iterable[str]) -> list[str]:
    """The outputs that are numbered students of a group."""
    return [output for output in outputs if student_number(output) is not None]


def means_of(outputs: Iterable[str]) -> dict[str, list[str]]:
    """MEAN and EMA_MEAN, as far as a method has them -> the outputs whose accuracies they average."""
    outputs = list(outputs)
    members = {MEAN: students_of(outputs), EMA_MEAN: [o for o in outputs if re.fullmatch(r"ema\d+", o)]}
    return {name: of for name, of in members.items() if of}


def metric(output: str, phase: str, name: str) -> str:
    """metric("stu_", "test", "accTop1") -> "stu_test_accTop1"."""
    return f"{output}{phase}_{name}"


def parse(text: str) -> tuple[str | None, str | None, str]:
    """parse("stu_test_accTop1") -> ("stu_", "test", "accTop1"): output, phase, name.

    Metrics of the whole model have neither output nor phase: parse("dist") -> (None, None, "dist").
    """
    match = re.fullmatch(rf"(.*?)({'|'.join(PHASES)})_(.*)", text)
    return match.groups() if match else (None, None, text)


def mean_titles(outputs: dict[str, str]) -> dict[str, str]:
    """What tables call MEAN and EMA_MEAN: "mean of the peers" for students titled "peer 0", ..."""
    kinds = {name: re.split(r" \d", outputs[of[0]])[0] for name, of in means_of(outputs).items()}
    return {name: f"mean of the {kind}s" for name, kind in kinds.items()}
