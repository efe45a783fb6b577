"""Networks from elsewhere: the network that its own library makes is the oracle, with a hook for its features."""

import copy
import pickle
import sys

import pytest
import torch
from torch import nn

import models
from models.cut import tried
from models.external import Source

CNN = """
import torch
from torch import nn
from torch.nn import functional as F


class CNN(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.middle = nn.Conv2d(8, 16, 3, 2, 1)
        self.scale = nn.Parameter(torch.ones(16, 1, 1))
        self.last = nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.act = nn.Sigmoid()
        self.unused = nn.Linear(2, 2)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, x, more=None):
        batch = x.shape[0]
        x = self.act(self.middle(self.stem(x))) * self.scale
        x = self.act(self.last(x)).mean((2, 3)).view(batch, -1)
        return self.fc(input=F.dropout(x, 0.3, self.training)) / 2


def tiny(num_classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))
"""

MORE = [("torchvision:shufflenet_v2_x0_5", 32, "stage4"), ("torchvision:efficientnet_b0", 32, "features.7"),
        ("torchvision:regnet_y_400mf", 32, "trunk_output.block4"), ("timm:mobilenetv3_small_050", 32, "blocks.5"),
        ("timm:efficientnet_lite0", 32, "blocks.6"), ("timm:convnext_atto", 32, "stages.3"),
        ("timm:vit_tiny_patch16_224", 224, "blocks.11"), ("torchvision:convnext_tiny", 32, "features.7"),
        ("torchvision:vit_b_16", 224, "encoder.layers.encoder_layer_11")]
CUTS = [("own:CNN", 32, "last"), ("own:CNN", 32, "middle"), ("torchvision:mobilenet_v3_small", 64, "features.9"),
        ("timm:resnet10t", 32, "layer4"), *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]


@pytest.fixture
def own(tmp_path):
    """Writes the text to a file; -> the function that completes a name: own:CNN -> <path>/own.py:CNN."""
    def name(text, source=CNN):
        (tmp_path / "own.py").write_text(source)
        return text.replace("own:", f"{tmp_path}/own.py:")

    yield name
    if str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def with_hook(network, classifier, images):
    """What the library's own network computes: its logits, and the input of its classifier."""
    seen = []
    handle = network.get_submodule(classifier).register_forward_hook(
        lambda module, x, named, z: seen.append((*x, *named.values())[0]), with_kwargs=True)
    z = network(images)
    handle.remove()
    return seen[0], z


@pytest.mark.parametrize("place", [True, False], ids=["cut", "whole"])
@pytest.mark.parametrize(("name", "size", "at"), CUTS)
def test_features_logits_and_gradients_are_those_of_the_original_network(own, name, size, at, place):
    name = own(name)
    source = Source(name, image_size=size)
    original, _ = source.build(7)
    original.double()
    network = models.create_model(name, 7, image_size=size, branch_at=at if place else None).double()
    own_names = network.own_state_dict()
    assert own_names.keys() == original.state_dict().keys()
    network.load_state_dict(dict(zip(network.state_dict(), map(original.state_dict().get, own_names), strict=True)))
    images = torch.randn(3, 3, size, size, dtype=torch.float64)

    gradients = []
    for compute in (lambda: with_hook(original, source.find_classifier(original), images),
                    lambda: network.head(network.trunk(images))):
        torch.manual_seed(1)  # of dropout
        h, z = compute()
        (h.square().sum() + z.square().sum()).backward()
        gradients.append((h, z))
    for ours, theirs in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    theirs = {key: p.grad for key, p in original.named_parameters()}
    ours = dict(zip(own_names, [p.grad for p in network.state_dict(keep_vars=True).values()], strict=True))
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in theirs.values())
    for key, gradient in theirs.items():
        assert (gradient is None) == (ours[key] is None), key
        if gradient is not None:
            torch.testing.assert_close(ours[key], gradient, rtol=1e-12, atol=1e-12)
    for key, value in original.state_dict().items():  # BatchNorm's statistics, too
        torch.testing.assert_close(network.own_state_dict()[key], value, rtol=0, atol=0)
    network.eval(), original.eval()
    torch.testing.assert_close(network(images), original(images), rtol=0, atol=0)


def test_students_share_the_trunk_alone_and_draw_their_own_weights(own):
    group = models.OKDDip(own("own:CNN"), 10, 4, branch_at="last")
    assert len(group.trunks) == 1
    seen = [id(p) for p in group.parameters()]
    assert len(seen) == len(set(seen))
    assert {len(dict(head.named_parameters())) for head in group.heads} == {6}  # last, unused and fc
    for a in range(4):
        for b in range(a):
            assert not torch.equal(group.heads[a].network.fc.weight, group.heads[b].network.fc.weight)
            assert group.heads[a].network.fc.weight.data_ptr() != group.heads[b].network.fc.weight.data_ptr()
    peers, targets, leader = group(torch.randn(2, 3, 32, 32))
    assert peers.shape == targets.shape == (2, 3, 10)
    assert leader.shape == (2, 10)


def test_a_torchvision_network_cut_at_layer4_has_the_numbers_of_ours():
    torch.manual_seed(0)
    ours = models.Branches("resnet18", 5, 2)
    theirs = models.Branches("torchvision:resnet18", 5, 2, branch_at="layer4", image_size=64)
    theirs.load_state_dict({key.replace("trunks.0.", "trunks.0.network.").replace("heads.0.", "heads.0.network.")
                            .replace("heads.1.", "heads.1.network."): value
                            for key, value in ours.state_dict().items()})
    images, gradients = torch.randn(2, 3, 64, 64), []
    for group in (ours, theirs):
        z = group(images)
        z.square().sum().backward()
        gradients.append([z, *(p.grad for p in group.parameters())])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("network_based", [True, False])
def test_each_method_takes_a_network_from_a_file(own, network_based):
    name, options = own("own:CNN"), {} if network_based else {"branch_at": "last"}
    images = torch.randn(2, 3, 32, 32)
    if network_based:
        assert models.KDCL([name, "resnet8"], 10, 2)(images).shape == (2, 2, 10)
        z, hybrid = models.OKDPH(name, 10, 2)(images.unsqueeze(1).expand(-1, 3, -1, -1, -1))
        assert hybrid.shape == (2, 10)
        with pytest.raises(ValueError, match="different classifiers|as many|width"):
            models.OKDDip([name, "resnet8"], 10, 3, network_based=True)(images)
    else:
        branches, ensemble = models.ONE(name, 10, 2, **options)(images)
        assert ensemble.shape == (2, 10)
        z, s, z_mean = models.PCL(name, 10, 2, **options)(images.unsqueeze(1).expand(-1, 2, -1, -1, -1))
        assert torch.equal(z.shape and s.shape and torch.tensor(z_mean.shape), torch.tensor([2, 2, 10]))
    with pytest.raises(ValueError, match="FFL fuses the last feature maps of the branches, which .* does not give"):
        models.FFL(name, 10, 2, network_based, **options)


BAD = {
    "no_file": ("{}/none.py:CNN", {}, "there is no file"),
    "no_name": ("{}/own.py:Net", {}, "has no 'Net'"),
    "no_num_classes": ("{}/own.py:without", {}, r"cannot be called with num_classes=C"),
    "raises": ("{}/own.py:raises", {}, r"cannot be built with num_classes=10 \(KeyError: 'depth', own.py line \d+\)"),
    "no_module": ("{}/own.py:no_module", {}, "returns int, not an nn.Module"),
    "no_linear": ("{}/own.py:no_linear", {}, "has no nn.Linear: name .* with --classifier"),
    "map": ("{}/own.py:no_linear", {"classifier": "0"}, r"takes 4-dimensional features \[2, 3, 32, 32\], not \[B, D\]"),
    "no_tensor": ("{}/own.py:Picks", {"classifier": "pick"}, r"takes tuple, not \[B, D\]: name another .*--classifier"),
    "no_such_classifier": ("{}/own.py:CNN", {"classifier": "head"}, "no submodule 'head'; .* are unused, fc"),
    "twice": ("{}/own.py:Twice", {}, "calls its classifier fc 2 times, not once"),
    "nan": ("{}/own.py:nan", {}, "logits that are not finite"),
    "classes": ("{}/own.py:seven", {}, r"returns \[7\] logits for 10 classes"),
    "tuple": ("{}/own.py:Pair", {}, "returns a tuple in training: it must return the logits"),
    "pair_cut": ("{}/own.py:Pair", {"branch_at": "b"}, "returns a tuple: it must return the logits"),
    "random": ("{}/own.py:Random", {"branch_at": "b"}, "because its code .* draws random numbers"),
    "counts": ("{}/own.py:Counts", {"branch_at": "b"}, "cannot be traced .*: its code changes a buffer"),
    "recounts": ("{}/own.py:Recounts", {"branch_at": "b"}, "cannot be traced .*: its code changes a buffer"),
    "training": ("{}/own.py:Auxiliary", {}, "returns a tuple in training: it must return the logits"),
    "quits": ("{}/quits.py:CNN", {}, r"quits.py cannot be imported \(SystemExit: 2, quits.py line 1\)$"),
    "fails": ("{}/own.py:Fails", {}, r"does not take images of 32x32 \(AttributeError: .* own.py line"),
    "two_values": ("{}/own.py:Skip", {"branch_at": "b"}, r"2 values cross the cut \(.*\), not one .*: --branch_at fc$"),
    "not_traced": ("{}/own.py:Branching", {"branch_at": "b"}, "cannot be traced .* no submodule .* \\(--MulStu\\)"),
    "shared": ("{}/own.py:Tied", {"branch_at": "b"}, "both sides of the cut use the weights a.weight"),
    "no_such_place": ("{}/own.py:CNN", {"branch_at": "layer4"}, "no submodule 'layer4': --branch_at stem.1 or"),
    "first": ("{}/own.py:CNN", {"branch_at": "stem"}, "cannot be cut at stem, because no layer comes before it"),
    "small": ("torchvision:alexnet", {}, "does not take images of 32x32 .* choose another --image_size"),
    "small_cut": ("torchvision:alexnet", {"branch_at": "classifier"}, "does not take images of 32x32"),
    "torchvision": ("torchvision:resnet5", {}, "torchvision has no classification network 'resnet5'"),
    "detection": ("torchvision:fasterrcnn_resnet50_fpn", {}, "torchvision has no classification network"),
    "timm": ("timm:resnet5", {}, "timm has no network 'resnet5'"),
    "pretrained_file": ("{}/own.py:CNN", {"pretrained": True}, "start .* from a file with --init"),
    "no_option": ("resnet8", {"branch_at": "layer3"}, "--branch_at is for networks from elsewhere: resnet8"),
}
BROKEN = CNN + """

def without():
    return nn.Linear(2, 2)


def raises(num_classes):
    return {}["depth"]


def no_module(num_classes):
    return num_classes


def no_linear(num_classes):
    return nn.Sequential(nn.Conv2d(3, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def seven(num_classes):
    return tiny(7)


def nan(num_classes):
    network = tiny(num_classes)
    nn.init.constant_(network[1].bias, float("nan"))
    return network


class Twice(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Linear(3, num_classes)

    def forward(self, x):
        x = self.b(self.a(x)).mean((2, 3))
        return self.fc(x) + self.fc(-x)


class Pair(Twice):
    def forward(self, x):
        z = self.fc(self.b(self.a(x)).mean((2, 3)))
        return z, z


class Random(Twice):
    def forward(self, x):
        x = self.a(x)
        return self.fc((self.b(x) if self.training and torch.rand(()) < 0.5 else x + self.b(x)).mean((2, 3)))


class Auxiliary(Twice):
    def forward(self, x):
        z = self.fc(self.b(self.a(x)).mean((2, 3)))
        return (z, x) if self.training else z


class Counts(Twice):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return self.fc(self.b(self.a(x)).mean((2, 3)) / self.count)


class Recounts(Counts):
    def forward(self, x):
        self.count = self.count + 1
        return self.fc(self.b(self.a(x)).mean((2, 3)) / self.count)


class Pick(nn.Module):
    def forward(self, pair):
        return pair[0]


class Picks(Twice):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.pick = Pick()

    def forward(self, x):
        x = self.b(self.a(x)).mean((2, 3))
        return self.fc(self.pick((x, x)))


class Fails(Twice):
    def forward(self, x):
        return self.fc(self.b(self.a(x)).means((2, 3)))


class Skip(Twice):
    def forward(self, x):
        x = self.a(x)
        return self.fc((self.b(x.relu()) + x).mean((2, 3)))


class Branching(Twice):
    def forward(self, x):
        x = self.a(x)
        return self.fc((self.b(x) if x.mean() > 0 else x).mean((2, 3)))


class Tied(Twice):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.fc(self.b(self.a(x)).mean((2, 3)))
"""


@pytest.mark.parametrize("case", BAD)
def test_a_network_that_cannot_be_used_says_why(own, tmp_path, case):
    own("", BROKEN)
    (tmp_path / "quits.py").write_text("raise SystemExit(2)\n")
    name, options, sentence = BAD[case]
    with pytest.raises(ValueError, match=sentence) as error:
        models.create_model(name.format(tmp_path), 10, **options)
    assert "\n" not in str(error.value)


def test_branches_need_a_place_and_the_error_lists_those_that_fit(own):
    with pytest.raises(ValueError, match="place where .* cut: --branch_at stem.1 or middle or last or last.0 or fc$"):
        models.OKDDip(own("own:CNN"), 10)
    with pytest.raises(ValueError, match="ONE's gate pools a feature map"):
        models.ONE("timm:vit_tiny_patch16_224", 10, 2, branch_at="blocks.11", image_size=224)


def test_a_file_that_does_not_import_says_where(own):
    with pytest.raises(ValueError, match=r"own.py cannot be imported \(ModuleNotFoundError: No module named 'nowhere'"):
        models.create_model(own("own:CNN", "import nowhere\n"), 10)


@pytest.mark.parametrize("line", ["from models import Net", "import models; models.Net", "import models.net"])
def test_a_module_next_to_the_file_that_one_of_ours_hides_is_named(own, tmp_path, line):
    (tmp_path / "models.py").write_text("Net = None\n")
    with pytest.raises(ValueError, match=r"own.py cannot be imported \(.*\): .*models/__init__.py hides the models "
                                         "next to it: give yours another name$"):
        models.create_model(own("own:CNN", line + "\n"), 10)


def test_students_cannot_get_the_same_weights():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    for network_based, options in ((True, {}), (False, {"branch_at": "1"})):
        with pytest.raises(ValueError, match="make returns the same weights at each call, and students must have"):
            models.Branches(always(network), 10, 2, network_based, **options)


def always(network):
    def make(num_classes):
        return nn.Sequential(network, nn.ReLU(), nn.Linear(10, num_classes))

    return make


def test_timm_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="timm:resnet10t needs a package that is not installed: pip install timm"):
        models.create_model("timm:resnet10t", 10)


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "timm:resnet10t"])
def test_weights_that_cannot_be_downloaded_are_one_line(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    with pytest.raises(ValueError, match=f"the weights of {name} cannot be downloaded .* without --pretrained"):
        models.create_model(name, 10, pretrained=True)


def no_network(*args, **kwargs):
    raise OSError("no network")


def test_pretrained_weights_are_the_librarys_but_for_a_classifier_of_other_classes(monkeypatch):
    import torchvision

    theirs = torchvision.models.mobilenet_v3_small()
    weights = torchvision.models.MobileNet_V3_Small_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **options: theirs.state_dict())
    for num_classes in (1000, 10):
        network = models.create_model("torchvision:mobilenet_v3_small", num_classes, pretrained=True, image_size=64)
        new = [f"classifier.3.{name}" for name in ("weight", "bias")] if num_classes == 10 else []
        assert network.head.new_weights == new
        for key, value in network.own_state_dict().items():
            assert key in new or torch.equal(value, theirs.state_dict()[key])


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_init_starts_every_student_from_the_file(own, tmp_path, ending):
    from safetensors.torch import save_file

    name, file = own("own:CNN"), str(tmp_path / f"weights.{ending}")
    start = models.create_model(name, 7).own_state_dict()
    save_file(start, file) if ending == "safetensors" else torch.save({"state_dict": start}, file)
    group = models.Branches(name, 10, 3, branch_at="last", init=file)
    for i in range(3):
        state = group.student(i).own_state_dict()
        assert all(torch.equal(state[key], start[key]) for key in start if not key.startswith("fc."))
        assert group.heads[i].new_weights == ["fc.weight", "fc.bias"]


@pytest.mark.parametrize(("change", "sentence"), {
    "missing": (lambda state: state.pop("scale"), "1 are missing, the first is scale"),
    "unknown": (lambda state: state.update(other=torch.zeros(1)), "1 are unknown, the first is other"),
    "shape": (lambda state: state.update(scale=torch.zeros(3)), "1 are of another shape, the first is scale"),
}.values())
def test_init_that_does_not_fit_is_one_line(own, tmp_path, change, sentence):
    name, state = own("own:CNN"), models.create_model(own("own:CNN"), 10).own_state_dict()
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=f"cannot start from .*weights.pth: {sentence}"):
        models.create_model(name, 10, init=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize(("content", "sentence"), [(None, "there is no file"), (b"no weights", "cannot be read")])
def test_init_that_cannot_be_read_is_one_line(own, tmp_path, content, sentence):
    if content:
        (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(ValueError, match=f"--init: .*{sentence}"):
        models.create_model(own("own:CNN"), 10, init=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("at", [None, "last"])
def test_networks_can_be_pickled_and_copied(own, at):
    network = models.create_model(own("own:CNN"), 10, branch_at=at)
    images = torch.randn(2, 3, 32, 32)
    expected = tried(network, lambda: network(images))
    before = torch.get_rng_state()
    for other in (pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert torch.equal(tried(other, lambda other=other: other(images)), expected)
        assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in network.parameters()}
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("at", [None, "last"])
def test_networks_can_be_compiled(own, at):
    network = models.create_model(own("own:CNN"), 10, branch_at=at).eval()
    images = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(network, backend="aot_eager")
    torch.testing.assert_close(compiled(images), network(images))
    h, z = torch.compile(network.head, backend="aot_eager")(network.trunk(images))
    torch.testing.assert_close(nn.functional.linear(h, *network.head.network.fc.parameters()) / 2, z)


def test_a_function_that_makes_the_network_is_as_good_as_a_name(own):
    def student(num_classes):
        return Source(own("own:CNN")).build(num_classes)[0]

    group = models.PCL(student, 10, 3, branch_at="last")
    assert group.name == group.peers.name == "student"
    mixed = models.KDCL([student, "resnet8"], 10, 2)
    assert mixed.name == "student+resnet8"
    assert mixed.student(0).name == "student"
    with pytest.raises(ValueError, match="without cannot be called with num_classes=C"):
        models.create_model(without, 10)
    with pytest.raises(ValueError, match="start <lambda> from a file with --init"):
        models.create_model(lambda num_classes: None, 10, pretrained=True)


def without():
    return nn.Linear(2, 2)
