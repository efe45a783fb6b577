"""hubconf.py through torch.hub, as from another project."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from PIL import Image

import hubconf
import models
from deployment import exporting, formats


def test_entry_points():
    """torch.hub.list lists every callable whose name does not begin with an underscore."""
    names = {name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")}
    assert names == {*models.NETWORKS, "okddip", "okddip_resnet20", "group"}
    assert all(getattr(hubconf, name).__doc__ for name in names)


@pytest.mark.parametrize(("name", "options"), [
    ("resnet20", {"num_classes": 7}), ("densenetd40k12", {"efficient": True}), ("vgg16", {"dropout": 0.5})])
def test_networks(name, options):
    network = torch.hub.load(str(ROOT), name, source="local", **options)
    with torch.no_grad():
        assert network.eval()(torch.randn(2, 3, 32, 32)).shape == (2, options.get("num_classes", 10))
    assert network.state_dict().keys() == models.create_model(name, 10).state_dict().keys()


ELSEWHERE = """
import json, pickle, sys, torch
load = lambda *name: torch.hub.load(sys.argv[1], *name, source="local")
x, found = torch.ones(1, 3, 32, 32), []
ours_first = load("resnet8")
import models, runtime, training, utils
for network in (ours_first, load("resnet8"), load("okddip_resnet20"), *(load("okddip", file) for file in sys.argv[2:])):
    assert models.MINE and runtime.MINE and training.MINE and utils.MINE and not {'deployment', 'runtime.errors',
        'models.registry', 'onnx', 'onnxscript'} & sys.modules.keys()
    if network not in found:
        found.append([network(x).tolist(), *(getattr(network, name, None) for name in ("training", "classes", "mean"))])
pickle.dumps(ours_first)  # its classes are still those of later networks
program = torch.export.load("leader.pt2").module()
print(json.dumps([*found, program(x).tolist()]))
"""


def test_another_project(tmp_path):
    """A process with modules and packages of the same names: they stay what they are, whichever comes first. Networks
    that were trained and exported have their logits and metadata; a .pt2 file opens without this project."""
    for name in ("models", "utils", "training"):
        (tmp_path / f"{name}.py").write_text("MINE = True")
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "__init__.py").write_text("MINE = True")
    network, x = models.create_model("resnet8", 3).eval(), torch.ones(1, 3, 32, 32)
    metadata = formats.describe("resnet8", ["a", "b", "c"], (0.1, 0.2, 0.3), (1, 2, 3), 32)
    files = [f"leader{ending}" for ending in formats.FORMATS]
    for file in files:
        exporting.write_checked(tmp_path / file, network, metadata, network, [torch.randn(2, 3, 32, 32)])
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, ROOT, *files], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second, trained, *exported, program = json.loads(done.stdout)
    assert len(first[0][0]) == len(second[0][0]) == 10 and first[0] != second[0]
    expected = formats.load(ROOT / "results" / "weights" / "okddip_resnet20.safetensors")(x)
    assert torch.tensor(trained[0]).allclose(expected, atol=1e-5) and trained[1] is False
    assert trained[2] == ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    for logits, in_training, classes, mean in exported:
        assert torch.tensor(logits).allclose(network(x), atol=1e-4)
        assert (in_training, classes, mean) == (False, ["a", "b", "c"], [0.1, 0.2, 0.3])
    assert torch.tensor(program).allclose(network(x), atol=1e-4) and len(exported) == 4


GROUPS = """
import pickle, sys, torch
from torch import nn

def make(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(16, num_classes))

for method, views, flags in (("OKDDip", 0, {"branch_at": "2"}), ("OKDDip-N", 0, {"temperature": 1.0}),
                             ("PCL", 3, {"branch_at": "2"}), ("OKDPH", 4, {"hybrid": "dirichlet", "seed": 1}),
                             ("DML", 0, {"detach_targets": True}), ("baseline", 0, {}),
                             ("CL-ILR", 0, {"MulStu": True, "bpscale": False})):
    group = torch.hub.load(sys.argv[1], "group", method, student=make, num_students=3, num_classes=5, source="local",
                           **flags)
    optimizer = torch.optim.AdamW(group.parameters(), lr=0.01)
    images = torch.randn(8, views, 3, 32, 32) if views else torch.randn(8, 3, 32, 32)
    losses = []
    for step in range(1, 21):
        group.before_step(step, step)
        terms = group.loss(images, torch.eye(5)[torch.arange(8) % 5], weight=0.5)
        optimizer.zero_grad()
        terms.total.backward()
        optimizer.step()
        group.after_step(step, step)
        losses.append(terms.true.item())
    assert losses[-1] < losses[0] and {"total", "true", "group"} <= terms.keys(), (method, losses)
    again = pickle.loads(pickle.dumps(group)).eval()
    x = images[:, 0] if views else images
    first = lambda found: found[0] if isinstance(found, tuple) else found
    assert torch.equal(first(again(x)), first(group.eval()(x))), method
    if method in ("PCL", "OKDPH"):  # the deployed network, as docs/own_project.md says
        deployed = group.model.mean.student(0) if method == "PCL" else group.model.deploy() or group.model.hybrid
        assert deployed(x).allclose(group(x)[-1][:, 0] if method == "PCL" else group(x)[-1], atol=1e-5), method
group = torch.hub.load(sys.argv[1], "group", "DML", student=[make, "resnet8"], num_students=2, source="local")
assert group(torch.randn(2, 3, 32, 32)).shape == (2, 2, 10)
for method, flags in (("OKDDip", {"branch": "2"}), ("OKDDip", {"branch": False}), ("DML", {"models": ["vgg16"]}),
                      ("OKDDip", {"label_smoothing": 0.1}), ("OKDDip", {"length": 3}),
                      ("OKDDip-others", {}), ("ONE", {"avg": True}), ("ONE", {"MulStu": True}),
                      ("OKDPH", {"interval": "1_epochs"}), ("OKDDip", {"num_students": 1})):
    try:
        torch.hub.load(sys.argv[1], "group", method, student=make, source="local", **flags)
    except ValueError as error:
        print(error)
assert not {"models", "methods", "training", "train_GL"} & sys.modules.keys()
"""


def test_a_group_for_a_loop_of_ones_own(tmp_path):
    """It learns, by each method and in a process without this project's modules; pickle keeps it."""
    (tmp_path / "loop.py").write_text(GROUPS)
    done = subprocess.run([sys.executable, "loop.py", ROOT], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    flag, off, models, *of_the_loop, method, other, MulStu, interval, students = done.stdout.splitlines()
    assert flag.startswith("unrecognized arguments: --branch 2") and off == "OKDDip has no flag branch"
    assert models.startswith("argument --models: names different networks")
    assert of_the_loop == [f"{name} is a flag of this project's training loop, not of OKDDip"
                           for name in ("label_smoothing", "length")]
    assert method.startswith("unknown method 'OKDDip-others'; known are baseline, ")
    assert other == "avg makes ONE another method: ask for CL-ILR"
    assert MulStu.startswith("argument --MulStu: ONE's gate needs a shared trunk")
    assert interval.startswith("argument --interval: invalid choice: '1_epochs'")
    assert students.startswith("argument --num_branches: must be at least 2, not 1")


def test_a_weight_and_flags_of_0_reach_the_loss():
    for weight, flags in ((0.0, {}), (1.0, {"alpha": 0.0})):
        group = hubconf.group("OKDDip", "resnet8", 3, 5, **flags)
        terms = group.loss(torch.randn(4, 3, 32, 32), torch.arange(4), weight)
        assert terms.total.equal(terms.true) and terms.group > 0


def test_a_trained_network_prepares_images_of_any_size_and_mode():
    network = torch.hub.load(str(ROOT), "okddip_resnet20", source="local")
    pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8)
    x = network.preprocess(Image.fromarray(pixels.numpy()))
    expected = (pixels / 255 - torch.tensor(network.mean)) / torch.tensor(network.std)
    torch.testing.assert_close(x[0].permute(1, 2, 0), expected)
    for image in (Image.new("LA", (90, 50)), Image.new("RGB", (48, 32))):  # the second is as high as it should be
        assert network.preprocess(image).shape == (1, 3, 32, 32)
