"""The table of methods; one training step of every valid combination of network, method and setting."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import methods
import models
from benchmarks import compare
from runtime.errors import UserError
from training.outputs import LEADER, MEAN, student_number

C = 7
LABELS = torch.tensor([0, 3, 6, 3])
# A method's name and the flags that make it network-based or change it.
SETTINGS = [("baseline", {}), ("KD", {}), ("OKDDip", {}), ("OKDDip", {"MulStu": True}), ("ONE", {}), ("CL-ILR", {}),
            ("CL-ILR", {"MulStu": True, "bpscale": False}), ("Ind", {}), ("Ind", {"MulStu": True}), ("DML", {}),
            ("FFL", {}), ("FFL", {"MulStu": True}), ("PCL", {}), ("KDCL", {"target": "minlogit"}), ("OKDPH", {})]

# One network of each other family. FFL fuses feature maps, whose sizes differ.
FAMILIES = ("vgg16", "densenetd40k12", "resnet18")
CASES = [*((name, flags, "resnet8") for name, flags in SETTINGS),
         *((name, {}, network) for name in ("OKDDip", "FFL", "ONE") for network in FAMILIES),
         *(("baseline", {}, network) for network in models.NETWORKS if network not in ("resnet8", *FAMILIES))]


def make(name, **flags):
    return compare.method(name, C, **flags)


@pytest.mark.parametrize("name", methods.METHODS)
def test_the_loss_runs_the_model_that_it_is_given(name):
    """With several processes it is the replica: only its forward pass shares gradients."""
    method, asked = make(name, model="resnet8", num_branches=3), []
    method.teacher = lambda images: torch.ones(4, C)
    V = method.views(method.args)
    views = torch.randn(4, 3, 32, 32) if V == 1 else torch.randn(4, V, 3, 32, 32)
    method.loss(lambda images: asked.append(1) or method.model(images), views, LABELS, 1.0)
    assert asked == [1]


@pytest.mark.parametrize(("name", "flags", "network"), CASES)
def test_one_step(name, flags, network):
    """Shapes, a finite loss, a gradient for every weight; what can be deployed is a plain network with its logits.

    W_L and W_E have theirs through the targets.
    """
    torch.manual_seed(0)
    images = torch.randn(4, 3, 32, 32)
    method = make(name, model=network, num_branches=3, **flags)
    V = method.views(method.args)
    views = images if V == 1 else torch.randn(4, V, 3, 32, 32)
    if name == "KD":
        method.teacher = lambda images: torch.ones(4, C)
    method.before_step(1, 1)
    terms, logits = method.loss(method.model, views, LABELS, 1.0)
    assert all(term.shape == () and torch.isfinite(term) for term in terms.values())
    assert logits.keys() == method.outputs.keys() and {z.shape for z in logits.values()} == {(4, C)}
    terms.total.backward()
    missing = [n for n, p in method.model.named_parameters() if p.requires_grad and (
        p.grad is None or not p.grad.isfinite().all() or not p.grad.any())]
    assert not missing
    method.after_step(1, 1)
    method.after_epoch(None, None)
    method.model.eval()
    with torch.no_grad():
        logits, _ = method.predict(images)
        assert logits.keys() == method.outputs.keys()
        method.deploy()
        plain = models.create_model(network, C).eval()
        for output in method.outputs:
            if output == LEADER or student_number(output) is not None or list(method.outputs) == [output]:
                plain.load_state_dict(method.network(output).state_dict())
                assert plain(images).allclose(logits[output], rtol=1e-4, atol=1e-4), output


@pytest.mark.parametrize("name", ["DML", "KDCL", "Ind", "CL-ILR"])
def test_different_networks(name):
    """A training step, and each student as the plain network of its name."""
    names = ["resnet8", "vgg16", "densenetd40k12"]
    flags = {"MulStu": True} if name in ("Ind", "CL-ILR") else {}
    method = make(name, models=names, num_branches=3, dropout=0.5, bpscale=False, **flags)
    assert list(method.outputs.values())[:3] == ["student 0, resnet8", "student 1, vgg16", "student 2, densenetd40k12"]
    images = torch.randn(4, 3, 3, 32, 32)
    terms, _ = method.loss(method.model, images if name == "KDCL" else images[:, 0], LABELS, 1.0)
    terms.total.backward()
    assert all(p.grad.isfinite().all() for p in method.model.parameters())
    assert sum(isinstance(m, torch.nn.Dropout) and m.p == 0.5 for m in method.model.modules()) == 2  # VGG has it
    method.model.eval()
    with torch.no_grad():
        logits, _ = method.predict(images[:, 0])
        for i, network in enumerate(names):
            plain = models.create_model(network, C, **({"dropout": 0.5} if network == "vgg16" else {})).eval()
            plain.load_state_dict(method.network(f"stu{i}").state_dict())
            assert method.network(f"stu{i}").name == network
            assert plain(images[:, 0]).allclose(logits[f"stu{i}"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_entry_names_its_class_and_its_command(name):
    """The flags of an entry make runs of that name; best and outputs belong together."""
    entry = methods.METHODS[name]
    kind, flags = methods.find(name)
    assert kind.name(flags) == name
    method = make(name, model="resnet8")
    assert method.best == MEAN or method.best in method.outputs
    assert entry.command.startswith(f"{entry.module}.py") and (ROOT / f"{entry.module}.py").exists()
    assert entry.group == hasattr(flags, "num_branches")
    assert entry.ramp_up == ("length" in flags and name != "Ind")  # Ind: no group loss
    dense = make(name, model="densenetd40k12", efficient=True)  # flags of the network reach it
    found = [part.efficient for part in dense.model.modules() if hasattr(part, "efficient")]
    assert found and all(found)


@pytest.mark.parametrize(("name", "family"), [("", "baseline"), ("OKDDip-N+KD", "OKDDip"), ("CL", "CL"),
                                              ("DML-pairwise", "DML"), ("Ind-N", "Ind")])
def test_variants_belong_to_a_family(name, family):
    assert methods.family(name) == family and methods.find(name)[0] is methods.find(family)[0]


def test_a_family_has_one_class():
    """Checkpoints of variants are rebuilt with the class of their family."""
    for name, entry in methods.METHODS.items():
        assert methods.FAMILIES[methods.family(name)].definition == entry.definition


def test_an_unknown_method_is_named():
    with pytest.raises(UserError, match="'Mine-2'.*METHODS in methods.py"):
        methods.find("Mine-2")
    done = subprocess.run([sys.executable, ROOT / "methods.py", "Mine"], capture_output=True, text=True)
    assert done.returncode == 2 and "baseline, KD" in done.stderr and done.stderr.count("\n") == 1


def test_titles_and_order():
    assert [methods.title_of(name) for name in ("baseline", "OKDDip", "ONE", "KDCL", "mine")] == [
        "Baseline", "OKDDip-B", "ONE", "KDCL (mean)", "mine"]
    assert sorted(["mine", "OKDDip", "KD", "a"], key=methods.position) == ["KD", "OKDDip", "a", "mine"]
