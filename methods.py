"""Every method in one table: what its runs are called, which class defines it, which command trains it.

    python methods.py CL-ILR          # prints: train_one.py --avg --bpscale
    python methods.py --has CL-ILR    # prints: group,ramp_up train_one.py --avg --bpscale

Evaluation, benchmarks, reports and scripts/runs.sh read this table. A new method needs one script, and one line here at
the end: the order of the table is that of methods and colours in tables and figures.
"""

import importlib
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

from runtime.errors import UserError


class Entry(NamedTuple):
    """definition: module and class. flags: those that choose the method in its script. title: in tables and figures.

    group: it trains several networks, so its script has --num_branches. ramp_up: its group loss has a ramp-up
    (``utils.ramp_up_flags``; Ind has no group loss). revision: raised when the method's mathematics change. A run
    that an older revision began is not continued, and its records are not mixed with those of newer ones.
    """

    definition: str
    flags: str = ""
    title: str = ""
    group: bool = True
    ramp_up: bool = False
    revision: int = 1

    @property
    def module(self) -> str:
        """The script without its ending."""
        return self.definition.partition(".")[0]

    @property
    def command(self) -> str:
        """The script and the flags that train this method."""
        return f"{self.module}.py {self.flags}".strip()

    @property
    def has(self) -> str:
        """What the method has: "group", "ramp_up", "group,ramp_up" or "-"."""
        return ",".join(name for name in ("group", "ramp_up") if getattr(self, name)) or "-"


METHODS = {  # the name of a run's folder -> entry
    "baseline": Entry("train.Baseline", title="Baseline", group=False),
    "KD": Entry("train_kd.KD", group=False),
    "Ind": Entry("train_one.Ind", "--ind"),
    "DML": Entry("train_DML.DML"),
    "CL-ILR": Entry("train_one.CollaborativeLearning", "--avg --bpscale", ramp_up=True),
    "ONE": Entry("train_one.ONE", ramp_up=True),
    "OKDDip-N": Entry("train_GL.OKDDip", "--MulStu", ramp_up=True),
    "OKDDip": Entry("train_GL.OKDDip", title="OKDDip-B", ramp_up=True),
    "FFL": Entry("train_FFL.FFL", ramp_up=True),
    "PCL": Entry("train_PCL.PCL", ramp_up=True, revision=2),  # 1: the trunk saw all views in one batch
    "KDCL": Entry("train_KDCL.KDCL", title="KDCL (mean)"),
    # 1: the hybrid's loss had m times its gradient, and an epoch was measured after its fusion
    "OKDPH": Entry("train_OKDPH.OKDPH", revision=2),
}


def family(name: str) -> str:
    """A method's name without its variants: "OKDDip-N+KD" -> "OKDDip"; "" (a baseline's folder) -> "baseline"."""
    return re.split("[-+]", name)[0] or "baseline"


FAMILIES = {family(name): METHODS.get(family(name), entry) for name, entry in METHODS.items()}


def revision(name: str) -> int:
    """The revision of a method, with or without variants; 1 of one that is not in the table."""
    return FAMILIES[family(name)].revision if family(name) in FAMILIES else 1


def title_of(name: str) -> str:
    """What tables and figures call a method; a name that is not in the table stays as it is."""
    return name if name not in METHODS else METHODS[name].title or name


def position(name: str) -> tuple[int, str]:
    """A sort key: the order of the table, then other names alphabetically."""
    return (list(METHODS).index(name) if name in METHODS else len(METHODS), name)


def find(name: str, words: Sequence[str] | None = None) -> tuple[type, object]:
    """-> the class of a method, and its script's flags: ``words`` (None: the method's own) and defaults.

    name: with or without variants.

    UserError if the table has no such method.
    """
    entry = METHODS.get(name) or FAMILIES.get(family(name))
    if entry is None:
        raise UserError(f"unknown method {name!r}: add its script to METHODS in methods.py; "
                        f"known are {', '.join(FAMILIES)}")
    module, words = importlib.import_module(entry.module), entry.flags.split() if words is None else words
    return getattr(module, entry.definition.partition(".")[2]), module.parse_args(words)


if __name__ == "__main__":
    with_has = sys.argv[1:2] == ["--has"]
    name = " ".join(sys.argv[1 + with_has:])
    if name not in METHODS:
        print(f"error: unknown method {name or '(none)'}: known are {', '.join(METHODS)}", file=sys.stderr)
        sys.exit(2)
    print(*[METHODS[name].has] * with_has, METHODS[name].command)
