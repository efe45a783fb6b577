"""hubconf.py through torch.hub, as from another project."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import hubconf
import models
from deployment import exporting, formats


def test_entry_points():
    """torch.hub.list lists every callable whose name does not begin with an underscore."""
    names = {name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")}
    assert names == {*models.NETWORKS, "okddip", "okddip_resnet20"}
    assert all(getattr(hubconf, name).__doc__ for name in names)


@pytest.mark.parametrize(("name", "options"), [("resnet8", {}), ("resnet20", {"num_classes": 7}),
                                               ("densenetd40k12", {"efficient": True}), ("vgg16", {"dropout": 0.5})])
def test_networks(name, options):
    network = torch.hub.load(str(ROOT), name, source="local", **options)
    with torch.no_grad():
        assert network.eval()(torch.randn(2, 3, 32, 32)).shape == (2, options.get("num_classes", 10))
    assert network.state_dict().keys() == models.create_model(name, 10).state_dict().keys()


@pytest.mark.parametrize("first", ["theirs", "ours"])
def test_modules_of_the_same_names(first, tmp_path):
    """A user's own modules and packages stay what they are, whichever comes first."""
    for name in ("models", "utils", "training"):
        (tmp_path / f"{name}.py").write_text("MINE = True")
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "__init__.py").write_text("MINE = True")
    theirs = ("import sys, models, runtime, training, utils\n"
              "assert models.MINE and runtime.MINE and training.MINE and utils.MINE\n"
              "assert not {'deployment', 'runtime.errors', 'models.registry'} & sys.modules.keys()")
    ours = f"network = torch.hub.load({str(ROOT)!r}, 'resnet8', source='local')"
    code = "\n".join(["import torch", *((theirs, ours) if first == "theirs" else (ours, theirs)), theirs,
                      "print(network(torch.ones(2, 3, 32, 32)).shape)"])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "torch.Size([2, 10])\n", done.stderr


def test_the_trained_network():
    """In another process, by its name alone; the weights are those that evaluate.py reads."""
    file = ROOT / "results" / "weights" / "okddip_resnet20.safetensors"
    code = ("import json, sys, torch\nnetwork = torch.hub.load(sys.argv[1], 'okddip_resnet20', source='local')\n"
            "assert not network.training\n"
            "print(json.dumps([network.classes, network(torch.ones(1, 3, 32, 32)).tolist()]))")
    done = subprocess.run([sys.executable, "-c", code, ROOT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    classes, logits = json.loads(done.stdout)
    assert classes == ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    expected = formats.load(file)(torch.ones(1, 3, 32, 32))
    assert torch.tensor(logits).allclose(expected, atol=1e-5)


def test_exported_files(tmp_path):
    network, x = models.create_model("resnet8", 3).eval(), torch.ones(1, 3, 32, 32)
    metadata = formats.describe("resnet8", ["a", "b", "c"], (0.1, 0.2, 0.3), (1, 2, 3), 32)
    for file in ("leader.pth", "leader.safetensors"):
        exporting.write_checked(tmp_path / file, network, metadata, network, [torch.randn(2, 3, 32, 32)])
    code = ("import sys, torch\nfor file in sys.argv[2:]:\n"
            "    network = torch.hub.load(sys.argv[1], 'okddip', file, source='local')\n"
            "    assert not network.training\n    print(network.classes, network.mean, network.std)\n"
            "    torch.save(network(torch.ones(1, 3, 32, 32)), file + '.logits')")
    command = [sys.executable, "-c", code, ROOT, "leader.pth", "leader.safetensors"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == 2 * "['a', 'b', 'c'] [0.1, 0.2, 0.3] [1, 2, 3]\n", done.stderr
    for file in command[-2:]:
        assert torch.load(tmp_path / f"{file}.logits").allclose(network(x), atol=1e-6)
