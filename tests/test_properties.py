"""What holds for any input, with inputs that hypothesis makes up."""

import argparse
import copy
import importlib
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slow import count_correct

import losses
from analysis.records import RecordedRun, mean_and_deviation
from loading.data import Data, Split
from loading.loaders import Loader
from runtime.checkpoints import digest, load_checkpoint, serialise
from training.metrics import diversity, topk_correct

# The same examples in every run of the suite, and no folder with examples left behind.
some = settings(max_examples=60, deadline=None, derandomize=True, database=None)
SCRIPTS = ("train", "train_kd", "train_GL", "train_one", "train_DML", "evaluate", "report")

# --- batches and their parts


def loader_of(process, world_size, n, batch_size, augment):
    """The loader of one of several processes. Its images do not matter."""
    split = Split(np.zeros((n, 1), np.uint8), np.zeros(n, np.int64))
    data = Data(split, split, ["a", "b"], (0.5,) * 3, (0.25,) * 3)
    torchrun = {"RANK": str(process), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in torchrun.items():
            patch.setitem(os.environ, name, value)
        loader = Loader(split, data, batch_size, torch.device("cpu"), augment=augment)
        return loader.bounds(), loader.parts(), loader.shares()


@some
@given(world_size=st.integers(1, 9), per_process=st.integers(2, 20), more=st.integers(0, 300), augment=st.booleans())
def test_every_image_is_in_one_part_of_one_batch(world_size, per_process, more, augment):
    """In training each process has two images or more, in evaluation one or more; shares weigh by images."""
    batch_size = world_size * per_process
    n = batch_size + more
    bounds, parts, shares = zip(*(loader_of(r, world_size, n, batch_size, augment) for r in range(world_size)),
                                strict=True)
    assert all(b == bounds[0] for b in bounds)
    assert [i for a, b in bounds[0] for i in range(a, b)] == list(range(n))
    least = 2 if augment else 1
    for step, (first, end) in enumerate(bounds[0]):
        assert batch_size <= end - first < batch_size + least * world_size or step == len(bounds[0]) - 1
        images = [i for part in parts for i in range(*part[step])]
        assert images == list(range(first, end))
        sizes = [b - a for a, b in (part[step] for part in parts)]
        assert min(sizes) >= least and max(sizes) - min(sizes) <= 1
        assert [share[step] for share in shares] == [size * world_size / (end - first) for size in sizes]


# --- losses and metrics


@some
@given(epoch=st.integers(0, 400), num_epochs=st.integers(1, 400), length=st.floats(0, 400),
       start=st.sampled_from([0.0, 0.07, 0.1, 0.25, 0.5, 1.0]))
def test_ramp_up(epoch, num_epochs, length, start):
    """1 before the start; then from exp(-5) up to 1 after ``length`` epochs, and it never falls."""
    w, following = (losses.ramp_up(e, num_epochs, start, length) for e in (epoch, epoch + 1))
    begun = epoch - start * num_epochs
    if begun < -1e-9 or length == 0 or begun >= length + 1e-9:
        assert w == 1
    else:
        x = max(0.0, min(begun, length)) / length
        assert w == pytest.approx(math.exp(-5 * (1 - x) ** 2), rel=1e-6) and math.exp(-5) * (1 - 1e-9) <= w <= 1
        assert following >= w


numbers = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6, width=32), st.just(-math.inf))


@some
@given(data=st.data(), images=st.integers(1, 5), outputs=st.integers(1, 3), classes=st.integers(1, 12))
def test_topk_is_that_of_sorting(data, images, outputs, classes):
    """Also with equal scores, few classes, and scores of minus infinity."""
    size = images * outputs * classes
    logits = torch.tensor(data.draw(st.lists(numbers, min_size=size, max_size=size))).view(images, outputs, classes)
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=images, max_size=images))
    found = topk_correct(logits, torch.tensor(labels))
    for r in range(outputs):
        expected = [count_correct(logits[:, r].tolist(), labels, k) for k in (1, 5)]
        assert found[:, r].sum(0).tolist() == expected
        order = logits[:, r].sort(dim=-1, descending=True, stable=True).indices
        assert found[:, r, 0].tolist() == [row[0] == label for row, label in zip(order.tolist(), labels, strict=True)]


@some
@given(m=st.integers(2, 6), images=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_diversity_is_a_distance(m, images, seed):
    """0 for equal students, the same in any order, at most sqrt(2) for an image."""
    p = torch.softmax(5 * torch.randn(images, m, 7, generator=torch.Generator().manual_seed(seed)), -1)
    d = diversity(p).item()
    assert 0 < d <= images * math.sqrt(2) + 1e-6
    assert diversity(p.flip(1)).item() == pytest.approx(d, rel=1e-5)
    assert diversity(p[:, :1].expand(-1, m, -1)).item() == 0


# --- the report

errors = st.lists(st.floats(0, 100), min_size=1, max_size=8)


@some
@given(errors)
def test_mean_and_deviation_are_numpys(values):
    mean, deviation = mean_and_deviation(pd.Series(values))
    assert mean == pytest.approx(np.mean(values), rel=1e-12, abs=1e-12)
    expected = None if len(values) == 1 else pytest.approx(np.std(values, ddof=1), rel=1e-9, abs=1e-9)
    assert deviation == expected


@some
@given(test=errors, digits=st.integers(0, 1), with_val=st.booleans(), data=st.data())
def test_best_and_last_epoch_are_numpys(test, digits, with_val, data):
    """Rounded, so that epochs are equally good: the later one counts."""
    chosen_by = data.draw(st.lists(st.floats(0, 100), min_size=len(test), max_size=len(test))) if with_val else test
    test, chosen_by = np.round(test, digits), np.round(chosen_by, digits)
    name = "val_accTop1" if with_val else "test_accTop1"
    history = [{"epoch": e + 1, "test_accTop1": a, name: v}
               for e, (a, v) in enumerate(zip(test.tolist(), chosen_by.tolist(), strict=True))]
    run = RecordedRun(Path("x"), {"val_size": int(with_val)}, history)
    best = len(test) - 1 - np.argmax(chosen_by[::-1])
    assert run.error("best", "") == (100 - test[best], best + 1)
    assert run.error("last", "") == (100 - test[-1], len(test))


# --- checkpoints

leaves = st.one_of(st.integers(-5, 5), st.booleans(), st.none(), st.floats(allow_nan=False), st.text(max_size=3),
                   st.lists(st.integers(-2, 2), max_size=4).map(torch.tensor),
                   st.lists(st.floats(-2, 2, width=32), max_size=4).map(torch.tensor))
contents = st.dictionaries(st.text(max_size=3), st.recursive(leaves, lambda inner: st.one_of(
    st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)), max_leaves=6), max_size=4)


def places(value, path=()):
    """The path of every entry, in every dictionary and list."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from places(part, (*path, key))


def changed(value):
    """Something else of the same kind."""
    if isinstance(value, torch.Tensor):
        return torch.cat([value, value.new_ones(1)]) if len(value) == 0 else torch.cat([value[:-1], value[-1:] + 1])
    if isinstance(value, dict):
        return {**value, "one more": 0}
    if isinstance(value, list):
        return [*value, 0]
    return {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: math.nextafter(v, 2e308 if v < 0 else -1),
            str: lambda v: v + "x", type(None): lambda v: 0}[type(value)](value)


@some
@given(content=contents, data=st.data())
def test_the_digest_changes_with_any_entry(content, data):
    """A changed, a missing and a renamed entry, wherever it is. A copy has the same digest."""
    before = digest(content)
    assert digest(copy.deepcopy(content)) == before
    if not (found := list(places(content))):
        return
    *path, key = data.draw(st.sampled_from(found))
    for change in ("value", "missing", "renamed"):
        other = copy.deepcopy(content)
        inner = other
        for step in path:
            inner = inner[step]
        if change == "value":
            inner[key] = changed(inner[key])
        elif change == "missing":
            del inner[key]
        elif isinstance(inner, dict):
            inner[key + "x" if key + "x" not in inner else key + "another"] = inner.pop(key)
        else:
            inner.append(0)
        assert digest(other) != before


@settings(some, max_examples=20)
@given(content=contents)
def test_a_checkpoint_is_read_as_it_was_written(content, tmp_path_factory):
    content = {name: value for name, value in content.items() if name != "digest"}
    path = tmp_path_factory.mktemp("x") / "x.pth"
    path.write_bytes(serialise(content))
    assert digest(load_checkpoint(path)) == digest(content)


# --- command lines


def flags_of(parser):
    return sorted(flag for action in parser._actions for flag in action.option_strings)


@settings(some, max_examples=150)
@given(data=st.data(), script=st.sampled_from(SCRIPTS))
def test_any_flags_give_a_namespace_or_one_line(data, script):
    """Flags of the script, in any order, with values of any kind."""
    module = importlib.import_module(script)
    parsers = []
    with pytest.MonkeyPatch.context() as patch:
        init = argparse.ArgumentParser.__init__
        patch.setattr(argparse.ArgumentParser, "__init__", lambda self, *a, **k: (init(self, *a, **k),
                                                                                  parsers.append(self))[0])
        module.parse_args(["x"] if script in ("evaluate", "report") else [])
    word = st.one_of(st.sampled_from(flags_of(parsers[0])), st.text(max_size=5), st.integers(-2, 400).map(str),
                     st.sampled_from(["nan", "1e400", "0.5", "vgg16", "DIGITS", "KL", "auto", "", "--", "=", "a b",
                                      "a\nb", "-3\n"]))
    argv = data.draw(st.lists(word, max_size=6))
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "_print_message", lambda self, text, file=None: printed.append(text))
        try:
            assert isinstance(module.parse_args(argv), argparse.Namespace)
        except SystemExit as end:
            text = "".join(filter(None, printed))
            one_line = text.startswith("error: ") and text.endswith("--help)\n") and text.count("\n") == 1
            assert end.code == 0 and text.startswith("usage: ") or end.code == 2 and one_line, text
