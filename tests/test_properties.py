"""What holds for any input, with inputs that hypothesis makes up."""

import copy
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loading.data import Data, Split
from loading.loaders import Loader
from runtime.checkpoints import digest

# The same examples in every run of the suite, and no folder with examples left behind.
some = settings(max_examples=60, deadline=None, derandomize=True, database=None)

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


@pytest.mark.slow
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
