"""Random command lines: a training would begin, or exit code 2 and one line say why not. Neither leaves a file."""

import importlib
import random
from collections import Counter

import pytest
from conftest import few_digits

import methods
import utils
from training import loop

SCRIPTS = sorted({entry.module for entry in methods.METHODS.values()})
VALUES = ["", "0", "1", "2", "3", "8", "10", "0.1", "0.5", "-1", "-0.5", "1e-30", "1e400", "nan", "inf", " 1", "0x1",
          "9" * 30, "two", "auto", "on", "off", "CE", "cpu", "meta", "resnet8", "resnet14", "vgg16", "DIGITS", "folder",
          "imagenet", "random", "nowhere", ".", "..", "a/b", "x" * 300, "a\nb", "ä ö", "-", "--"]


class Accepted(Exception):
    """A training that would begin now."""


def begin(*_):
    raise Accepted


def random_line(parse_args, rng):
    """Up to five flags with random values, after those of a quick training."""
    words = ["--dataset", "DIGITS", "--model", "resnet8", "--batch_size", "8"]
    known = vars(parse_args([]))
    for name in rng.choices(list(known), k=rng.randint(0, 5)):
        flag = f"--{name}"[:rng.randint(3, 30)] if rng.random() < 0.05 else f"--{name}"  # cut short: refused
        count = 0 if known[name] is False else rng.choice([1, 1, 1, 1, 2, 0])
        words += [flag, *rng.choices(VALUES, k=count)]
    return words


@pytest.mark.slow
def test_random_command_lines_are_accepted_or_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "fit", begin)
    counts = Counter()
    with few_digits():
        for i in range(300):
            rng = random.Random(i)
            module = importlib.import_module(rng.choice(SCRIPTS))
            words = random_line(module.parse_args, rng)
            capsys.readouterr()
            with pytest.raises((Accepted, SystemExit)) as end:
                utils.command(lambda module=module, words=words: module.main(words))
            refusal = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
            said = f"line {i}: {module.__name__}.py {words}: {end.value!r} {refusal}"
            counts[end.type] += 1
            assert not list(tmp_path.iterdir()), said
            if end.type is SystemExit:
                assert end.value.code == 2 and len(refusal) == 1 and refusal[0].startswith("error: "), said
    assert min(counts[Accepted], counts[SystemExit]) > 20
