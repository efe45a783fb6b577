"""The table of methods; one training step of every valid combination of network, method and setting."""

import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from conftest import ROOT

import methods
import models
from runtime.errors import UserError
from training.outputs import MEAN

C = 7
LABELS = torch.tensor([0, 3, 6, 3])
# A method's name and the flags that make it network-based or change it.
SETTINGS = [("baseline", {}), ("KD", {}), ("OKDDip", {}), ("OKDDip", {"MulStu": True}), ("ONE", {}), ("CL-ILR", {}),
            ("CL-ILR", {"MulStu": True, "bpscale": False}), ("Ind", {}), ("Ind", {"MulStu": True}), ("DML", {})]


def make(name, **flags):
    kind, defaults = methods.find(name)
    return kind(Namespace(**vars(defaults) | flags), C)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Four images a step are too few for several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("network", models.NETWORKS)
@pytest.mark.parametrize(("name", "flags"), SETTINGS)
def test_one_step(network, name, flags):
    """Shapes, a finite loss, a gradient for every parameter; every student is a plain network with the same logits."""
    torch.manual_seed(0)
    size = 64 if network in ("resnet18", "resnet34", "resnet50") else 32
    images = torch.randn(4, 3, size, size)
    method = make(name, model=network, num_branches=3, **flags)
    if name == "KD":
        method.teacher = lambda images: torch.ones(4, C)
    terms, logits = method.loss(method.model, images, LABELS, 1.0)
    assert all(term.shape == () and torch.isfinite(term) for term in terms)
    assert logits.shape == (4, len(method.outputs), C)
    terms.total.backward()
    missing = [n for n, p in method.model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not missing
    model = method.model.eval()
    with torch.no_grad():
        assert method.predict(images)[0].shape == (4, len(method.outputs), C)
        if name in ("baseline", "KD"):
            return
        z = model.students([trunk(images) for trunk in model.trunks])[1]
        plain = models.create_model(network, C).eval()
        plain.load_state_dict(model.student(-1).state_dict())
        assert z.shape == (4, 3, C)
        assert plain(images).allclose(z[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_entry_names_its_class_and_its_command(name):
    """The flags of an entry make runs of that name; best and outputs belong together."""
    entry = methods.METHODS[name]
    kind, flags = methods.find(name)
    assert kind.name(flags) == ("" if name == "baseline" else name)
    method = make(name, model="resnet8")
    assert method.best == MEAN or method.best in method.outputs
    assert entry.command.startswith(f"{entry.module}.py") and (ROOT / f"{entry.module}.py").exists()
    done = subprocess.run([sys.executable, ROOT / "methods.py", name], capture_output=True, text=True)
    assert done.stdout == entry.command + "\n"


@pytest.mark.parametrize(("name", "family"), [("", "baseline"), ("OKDDip-N+KD", "OKDDip"), ("CL", "CL"),
                                              ("DML-pairwise", "DML"), ("Ind-N", "Ind")])
def test_variants_belong_to_a_family(name, family):
    assert methods.family(name) == family and methods.find(name)[0] is methods.find(family)[0]


def test_a_family_has_one_class():
    """Checkpoints of variants are rebuilt with the class of their family."""
    for name, entry in methods.METHODS.items():
        assert methods.FAMILIES[methods.family(name)].definition == entry.definition


def test_an_unknown_method_is_named():
    with pytest.raises(UserError, match="'FFL-2'.*METHODS in methods.py"):
        methods.find("FFL-2")
    done = subprocess.run([sys.executable, ROOT / "methods.py", "FFL"], capture_output=True, text=True)
    assert done.returncode == 2 and "baseline, KD" in done.stderr and done.stderr.count("\n") == 1


def test_titles_and_order():
    assert [methods.title_of(name) for name in ("baseline", "OKDDip", "ONE", "mine")] == [
        "Baseline", "OKDDip-B", "ONE", "mine"]
    assert sorted(["mine", "OKDDip", "KD", "a"], key=methods.position) == ["KD", "OKDDip", "a", "mine"]
