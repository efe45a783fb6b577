"""Checkpoints of the authors' code.

Their names and shapes are written down here a second time, by hand, with a functional forward that reads these names.
So neither models/official.py nor the modules are compared with themselves.
"""

import pytest
import torch
from network_data import load_official, random_images, weights_by_name
from torch import Tensor
from torch.nn import functional as F

import models

# --- the authors' names and shapes of each part. ``final`` is not used for VGG: it has no final norm


def norm(name: str, channels: int) -> dict[str, tuple]:
    return {**{f"{name}.{leaf}": (channels,) for leaf in ("weight", "bias", "running_mean", "running_var")},
            f"{name}.num_batches_tracked": ()}


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def vgg_conv(name: str, inputs: int, outputs: int) -> dict[str, tuple]:
    return {f"{name}.weight": (outputs, inputs, 3, 3), f"{name}.bias": (outputs,)}


def vgg_stage(name: str, inputs: int, outputs: int, convolutions: int) -> dict[str, tuple]:
    shapes = {}
    for i in range(convolutions):
        shapes |= vgg_conv(f"{name}.{3 * i}", outputs if i else inputs, outputs)
        shapes |= norm(f"{name}.{3 * i + 1}", outputs)
    return shapes


def vgg_trunk(convolutions: int) -> dict[str, tuple]:
    return {**vgg_conv("conv1", 3, 64), **norm("bn1", 64), **vgg_conv("conv2", 64, 64), **norm("bn2", 64),
            **vgg_stage("layer1", 64, 128, 2), **vgg_stage("layer2", 128, 256, convolutions),
            **vgg_stage("layer3", 256, 512, convolutions)}


def vgg_head(convolutions: int, classes: int, block: str = "layer4", final: str = "",
             classifier: str = "classifier") -> dict[str, tuple]:
    return {**vgg_stage(block, 512, 512, convolutions), **linear(f"{classifier}.0", 512, 512),
            **linear(f"{classifier}.3", 512, 512), **linear(f"{classifier}.6", 512, classes)}


def dense_block(name: str, channels: int, layers: int) -> dict[str, tuple]:
    shapes = {}
    for j in range(layers):
        layer = f"{name}.denselayer{j + 1}"
        shapes |= norm(f"{layer}.norm1", channels + 12 * j) | {f"{layer}.conv1.weight": (48, channels + 12 * j, 1, 1)}
        shapes |= norm(f"{layer}.norm2", 48) | {f"{layer}.conv2.weight": (12, 48, 3, 3)}
    return shapes


def densenet_trunk(layers: int) -> dict[str, tuple]:
    assert layers == 6
    return {"features.conv0.weight": (24, 3, 3, 3),
            **dense_block("features.denseblock1", 24, 6),
            **norm("features.transition1.norm", 96), "features.transition1.conv.weight": (48, 96, 1, 1),
            **dense_block("features.denseblock2", 48, 6),
            **norm("features.transition2.norm", 120), "features.transition2.conv.weight": (60, 120, 1, 1)}


def densenet_head(layers: int, classes: int, block: str = "features.denseblock3", final: str = "features.norm_final",
                  classifier: str = "classifier") -> dict[str, tuple]:
    return {**dense_block(block, 60, layers), **norm(final, 132), **linear(classifier, 132, classes)}


# --- functional forwards (evaluation mode) that read these names


def batch_norm_relu(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    mean, var, weight, bias = (w[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias"))
    return F.relu(F.batch_norm(x, mean, var, weight, bias))


def vgg_forward(w: dict[str, Tensor], x: Tensor, convolutions: int, block: str = "layer4", final: str = "",
                classifier: str = "classifier") -> tuple[Tensor, Tensor]:
    def conv(x: Tensor, conv: str, norm: str) -> Tensor:
        return batch_norm_relu(F.conv2d(x, w[f"{conv}.weight"], w[f"{conv}.bias"], padding=1), w, norm)

    x = F.max_pool2d(conv(conv(x, "conv1", "bn1"), "conv2", "bn2"), 2)
    for stage, n in (("layer1", 2), ("layer2", convolutions), ("layer3", convolutions), (block, convolutions)):
        for i in range(n):
            x = conv(x, f"{stage}.{3 * i}", f"{stage}.{3 * i + 1}")
        x = F.max_pool2d(x, 2)
    h = z = x.reshape(len(x), 512)
    for i in (0, 3, 6):
        z = F.linear(z if i == 0 else F.relu(z), w[f"{classifier}.{i}.weight"], w[f"{classifier}.{i}.bias"])
    return h, z


def densenet_forward(w: dict[str, Tensor], x: Tensor, layers: int, block: str = "features.denseblock3",
                     final: str = "features.norm_final", classifier: str = "classifier") -> tuple[Tensor, Tensor]:
    x = F.conv2d(x, w["features.conv0.weight"], padding=1)
    for i, name in enumerate(("features.denseblock1", "features.denseblock2", block), start=1):
        for j in range(1, layers + 1):
            layer = f"{name}.denselayer{j}"
            new = F.conv2d(batch_norm_relu(x, w, f"{layer}.norm1"), w[f"{layer}.conv1.weight"])
            new = F.conv2d(batch_norm_relu(new, w, f"{layer}.norm2"), w[f"{layer}.conv2.weight"], padding=1)
            x = torch.cat([x, new], 1)
        if i < 3:
            transition = f"features.transition{i}"
            x = F.conv2d(batch_norm_relu(x, w, f"{transition}.norm"), w[f"{transition}.conv.weight"])
            x = F.avg_pool2d(x, 2)
    h = batch_norm_relu(x, w, final).mean((2, 3))
    return h, F.linear(h, w[f"{classifier}.weight"], w[f"{classifier}.bias"])


# name -> depth of a stage or block, D, and the functions above
FAMILIES = {
    "vgg16": (3, 512, vgg_trunk, vgg_head, vgg_forward),
    "vgg19": (4, 512, vgg_trunk, vgg_head, vgg_forward),
    "densenetd40k12": (6, 132, densenet_trunk, densenet_head, densenet_forward),
}


def branch_names(name: str, i: int, okddip: bool) -> dict[str, str]:
    """The names of branch i in a branch-based checkpoint: last stage, final norm (DenseNet) and classifier."""
    dense_okddip = okddip and name.startswith("densenet")
    return {"block": f"Branch{i}" if dense_okddip else f"layer3_{i}", "final": f"norm_final_{i}",
            "classifier": f"classifier3_{i}"}


def plain_checkpoint(name: str, classes: int) -> dict[str, Tensor]:
    depth, _, trunk, head, _ = FAMILIES[name]
    return weights_by_name({**trunk(depth), **head(depth, classes)})


def branch_checkpoint(name: str, classes: int, m: int, okddip: bool, extra: dict[str, tuple]) -> dict[str, Tensor]:
    depth, _, trunk, head, _ = FAMILIES[name]
    shapes = trunk(depth) | extra
    for i in range(m):
        shapes |= head(depth, classes, **branch_names(name, i, okddip))
    return weights_by_name(shapes)


def branch_forward(name: str, w: dict[str, Tensor], x: Tensor, m: int, okddip: bool) -> tuple[Tensor, Tensor]:
    """Features [B, m, D] and logits [B, m, C] of a branch-based checkpoint."""
    depth, _, _, _, forward = FAMILIES[name]
    h, z = zip(*(forward(w, x, depth, **branch_names(name, i, okddip)) for i in range(m)), strict=True)
    return torch.stack(h, 1), torch.stack(z, 1)


# --- tests


@pytest.mark.parametrize("name", ["vgg19", "densenetd40k12"])
def test_official_plain(name):
    depth, _, _, _, forward = FAMILIES[name]
    checkpoint, x = plain_checkpoint(name, 10), random_images(2).double()
    parallel = {f"module.{key}": value for key, value in checkpoint.items()}  # as DataParallel saves it
    network = load_official(models.create_model(name, 10), parallel)
    h, z = forward(checkpoint, x, depth)
    with torch.no_grad():
        ours = network.head(network.trunk(x))
    assert len(network.state_dict()) == len(checkpoint)
    torch.testing.assert_close(ours, (h, z))


@pytest.mark.parametrize("name", ["vgg16", "densenetd40k12"])
def test_official_okddip_branches(name):
    width, m, x = FAMILIES[name][1], 3, random_images(2).double()  # two peers and the leader
    attention = {f"{part}_weight.weight": (width // 8, width) for part in ("query", "key")}
    checkpoint = branch_checkpoint(name, 10, m, okddip=True, extra=attention)
    with torch.no_grad():
        peers, targets, leader = load_official(models.OKDDip(name, 10, m), checkpoint)(x)
    h, z = branch_forward(name, checkpoint, x, m, okddip=True)
    L, E = (h[:, :-1] @ checkpoint[f"{part}_weight.weight"].T for part in ("query", "key"))
    torch.testing.assert_close(peers, z[:, :-1])
    torch.testing.assert_close(leader, z[:, -1])
    torch.testing.assert_close(targets, torch.softmax(L @ E.transpose(1, 2), -1) @ z[:, :-1])


@pytest.mark.parametrize(("okddip", "lost"), [
    (None, "features.transition2.conv.weight"), (True, "Branch1.denselayer6.conv2.weight"),
    (False, "norm_final_0.bias")])
def test_official_names_what_is_missing_or_misshapen(okddip, lost):
    name = "densenetd40k12"
    if okddip is None:
        model, checkpoint = models.create_model(name, 10), plain_checkpoint(name, 10)
    else:
        model, checkpoint = models.Branches(name, 10, 2), branch_checkpoint(name, 10, 2, okddip, extra={})
    models.load_official_state_dict(model, checkpoint)
    value = checkpoint.pop(lost)
    with pytest.raises(ValueError, match=f"no .*{lost}"):
        models.load_official_state_dict(model, checkpoint)
    with pytest.raises(ValueError, match=f"{lost}.* shape"):
        models.load_official_state_dict(model, checkpoint | {lost: value.repeat(*[2] * value.dim())})
