"""Random command lines and damaged files: accepted, or refused with exit code 2 and one line, leaving nothing.

The lines run in this process, and trainings that are accepted stop where the first epoch would begin.
"""

import argparse
import contextlib
import importlib
import io
import os
import random
import shutil
import signal
from collections import Counter

import pytest
from conftest import few_digits
from damage import damage
from kill import make_images

import evaluate
import train
import train_GL
import utils
from runtime import processes

TRAININGS = ("train", "train_kd", "train_GL", "train_one", "train_DML", "train_FFL", "train_PCL", "train_KDCL",
             "train_OKDPH")
SCRIPTS = (*TRAININGS, "evaluate", "report")
RUN = "DIGITS/OKDDip/resnet8"  # a finished run below the folder of the fuzzer
SMALL = {"model": ["resnet8", "resnet14", "vgg16", "densenetd40k12"], "models": ["resnet8", "vgg16"],
         "T_model": ["resnet8", "vgg16"],
         "dataset": ["DIGITS", "DIGITS", "DIGITS", "folder", "CIFAR10", "imagenet"]}
PATHS = [RUN, "DIGITS/resnet8", f"{RUN}/last.pth", f"{RUN}/train.log", "images", "images/train/red/0.png", "leader.pth",
         "nowhere", "", ".", "..", "pipe", "x" * 300, "a\nb", "ä ö", "x.onnx", "x.pth"]
NUMBERS = ["0", "1", "2", "3", "4", "8", "10", "60", "128", "129", "300", "0.1", "0.5", "1.0", "1e-30", "1e400", "-1",
           "-0.5", "nan", "inf", "", " 1", "1_0", "0x1", "9" * 30, "two", "1,5"]
WORDS = ["", "auto", "x", "a/b", "..", "-", "--", "a\nb", "a b", "V0", "cpu", "cuda", "cuda:7", "meta", "on", "off"]


def actions_of(module, needed):
    """The flags of a script, as its parser knows them."""
    found, add = [], argparse._ActionsContainer._add_action

    def note(self, action):
        found.append(action)
        return add(self, action)

    argparse._ActionsContainer._add_action = note
    try:
        module.parse_args(needed)
    finally:
        argparse._ActionsContainer._add_action = add
    return [action for action in found if "--help" not in action.option_strings]


def value(action, rng):
    """A value for a flag: mostly of the right kind."""
    if rng.random() < 0.1:
        return rng.choice([*WORDS, *NUMBERS, *PATHS])
    if action.dest in SMALL or action.choices:
        return rng.choice(SMALL.get(action.dest) or list(action.choices))
    if action.type and getattr(action.type, "__name__", "") in ("int", "float"):
        return rng.choice(NUMBERS if rng.random() < 0.3 else NUMBERS[:8])
    if action.dest in ("data_dir", "save_dir", "resume", "T_model_path", "export", "images", "file", "runs", "html",
                       "figures"):
        return rng.choice(PATHS)
    return rng.choice(WORDS)


def line(script, actions, rng):
    """The words of a random command line. Most trainings are of few digits, so that they are quick to accept."""
    words = []
    if script in TRAININGS and rng.random() < 0.8:
        words += ["--dataset", "DIGITS", "--model", "resnet8", "--batch_size", "8", "--version", "new"]
    if script == "train_kd" and rng.random() < 0.8:
        words += ["--T_model", "resnet8", "--T_model_path", "DIGITS/resnet8"]
    if script == "evaluate" or script == "report":
        words += [rng.choice(PATHS[:8]) for _ in range(rng.choice([0, 1, 1, 1, 2]))]
    for _ in range(rng.choice([0, 1, 1, 2, 2, 3, 5])):
        action = rng.choice(actions)
        flag = [rng.choice(action.option_strings)] if action.option_strings else []
        if flag and rng.random() < 0.05:
            flag = [flag[0][:rng.randint(2, len(flag[0]))]]  # cut short: refused
        if action.nargs == 0 and flag:
            words += flag if rng.random() < 0.9 else [f"{flag[0]}=x"]
        elif rng.random() < 0.1 and flag:
            words += [f"{flag[0]}={value(action, rng)}"]
        else:
            count = rng.choice([1, 1, 2, 0]) if action.nargs == "+" or rng.random() < 0.05 else 1
            words += [*flag, *(value(action, rng) for _ in range(count))]
    return words


def variables(rng):
    """torchrun's variables: mostly none, else ones that make no sense."""
    if rng.random() > 0.05:
        return {}
    right = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    return right | {rng.choice([*right, "LOCAL_RANK"]): rng.choice(["", "x", "-1", "1.5"])} | (
        {"MASTER_PORT": "none"} if rng.random() < 0.9 else {"RANK": "7"})


def files_below(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()} | {
        path: 0 for path in folder.rglob("*") if path.is_dir()}


def prepare(root):
    """A finished run, a baseline, an exported file, images, a pipe."""
    quick = ["--dataset", "DIGITS", "--model", "resnet8", "--batch_size", "64", "--num_epochs", "1", "--device", "cpu"]
    for script in (train, train_GL):
        script.main(quick)
    evaluate.main([RUN, "--export", "leader.pth"])
    make_images(root / "images", per_class=5)
    os.mkfifo("pipe")


class Accepted(Exception):
    """A training that would begin now."""


def outcome(main, words, environment, limit=60):
    """-> exit code and standard error of the script's main, called as the script does. AssertionError if it is late."""
    def late(*_):
        raise AssertionError(f"longer than {limit} s")

    errors = io.StringIO()
    old = signal.signal(signal.SIGALRM, late)
    signal.alarm(limit)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(errors):
            out.reconfigure = lambda **_: None  # report.py sets the encoding of a real file
            os.environ.update(environment)
            utils.command(lambda: main(words))
        return 0, errors.getvalue()
    except Accepted:
        return 0, errors.getvalue()
    except SystemExit as end:
        return end.code or 0, errors.getvalue()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        for name in environment:
            del os.environ[name]


def check(script, words, code, errors):
    """AssertionError unless a refusal is one line, after any warnings."""
    last = [text for text in errors.splitlines() if not text.startswith("warning: ")]
    one_line = len(last) == 1 and last[0].startswith("error: ")
    if code not in (0, 2) or "Traceback" in errors or code == 2 and not one_line:
        raise AssertionError(f"{script}.py {words}: exit code {code}\n{errors}")


def compare(before, after, code, said):
    """Only accepted lines write. They replace no file of a run. What they have made is deleted; -> the files now."""
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert not changed or code == 0, f"{said} changed {changed}"
    assert not any(path.parent.name == "resnet8" and path in before for path in changed), f"{said} changed {changed}"
    for path in sorted(changed - before.keys(), reverse=True):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    return {path: time for path, time in after.items() if path in before}


def begin(*_):
    raise Accepted


@pytest.mark.slow
def test_random_command_lines_are_accepted_or_refused(tmp_path, monkeypatch):
    """In an empty folder, without a network."""
    counts = Counter()
    modules = {name: importlib.import_module(name) for name in SCRIPTS}
    actions = {name: actions_of(module, ["x"] if name not in TRAININGS else []) for name, module in modules.items()}
    closed = {"https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}  # no downloads
    monkeypatch.chdir(tmp_path)
    with few_digits():
        prepare(tmp_path)
        before = files_below(tmp_path)
        monkeypatch.setattr(processes, "leave", lambda: None)
        for name in TRAININGS:
            monkeypatch.setattr(modules[name], "fit", begin)
        for i in range(300):
            rng = random.Random(i)
            script = rng.choice(SCRIPTS)
            words, environment = line(script, actions[script], rng), closed | variables(rng)
            try:
                code, errors = outcome(modules[script].main, words, environment)
                check(script, words, code, errors)
            except Exception as error:
                raise AssertionError(f"line {i}: {script}.py {words} {environment}") from error
            before = compare(before, files_below(tmp_path), code, f"line {i}: {script}.py {words}")
            counts["accepted" if code == 0 else "refused"] += 1
    assert counts["accepted"] > 20 and counts["refused"] > 20


@pytest.mark.slow
def test_damaged_files_are_refused_or_right(tmp_path):
    counts = damage(tmp_path, damages=30)
    assert sum(counts.values()) == 150 and all(counts[name, "refused"] > 15 for name, _ in counts)
