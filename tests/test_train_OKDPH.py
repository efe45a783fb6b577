"""train_OKDPH.py: gradients and fusion; different networks up to the export."""

import pytest
import torch
from conftest import few_digits
from processes import load
from torch.nn import functional as F

import evaluate
import models
import train_DML
import train_OKDPH
import train_PCL
from benchmarks import compare
from deployment.reading import read
from runtime.checkpoints import serialise
from runtime.errors import UserError

FEW = ["--model", "resnet8", "--dataset", "DIGITS", "--batch_size", "32", "--schedule", "3", "--device", "cpu"]
M, C, OMEGA, BETA, T, GAMMA = 2, 5, 0.7, 0.9, 4.0, 0.25


def make(**flags):
    """OKDPH of networks that differ, in float64."""
    torch.manual_seed(0)
    method = compare.method("OKDPH", C, model="resnet8", num_branches=M, omega=OMEGA, beta=BETA, gamma=GAMMA, **flags)
    method.model.double().train()
    with torch.no_grad():
        for p in method.model.heads[1].parameters():
            p.mul_(1.1)
    return method


def logits(weights, view):
    network = models.create_model("resnet8", C).double().train()
    return torch.func.functional_call(network, weights, (view,))


def mixed(networks, r):
    return {name: sum(r_i * w[name] for r_i, w in zip(r.tolist(), networks, strict=True)) for name in networks[0]}


def own_loss(i, networks, hybrid, t, views, y):
    """L_i of the paper, equation by equation; t is constant."""
    z, z_hybrid = logits(networks[i], views[:, i]), logits(hybrid, views[:, -1])
    p, log_q = (t / T).softmax(-1), (z / T).log_softmax(-1)
    kl = (p * (p.log() - log_q)).sum() / len(y)
    return OMEGA * F.cross_entropy(z, y) + (1 - OMEGA) * F.cross_entropy(z_hybrid, y) + BETA * T**2 * kl


@pytest.mark.parametrize("flags", [{}, {"hybrid_gradient": True}, {"hybrid_gradient": True, "hybrid": "dirichlet"}])
def test_each_network_follows_its_own_loss(flags):
    """Finite differences of L_i in a random direction of network i's weights.

    Without --hybrid_gradient theta_hybrid stays as it is; with it, it moves with network i, r_i times as far.
    """
    method, y = make(**flags), torch.randint(C, (4,))
    views = torch.randn(4, M + 1, 3, 32, 32, dtype=torch.float64)
    method.before_step(1, 1)
    method.loss(method.model, views, y, 1.0)[0].total.backward()
    networks, r = [dict(method.model.student(i).named_parameters()) for i in range(M)], method.model.r
    gradients = [{k: w.grad for k, w in own.items()} for own in networks]
    networks = [{k: w.detach().clone() for k, w in own.items()} for own in networks]
    hybrid = mixed(networks, r)
    t = sum([*(logits(networks[i], views[:, i]) for i in range(M)), logits(hybrid, views[:, -1])]) / (M + 1)
    for i in range(M):
        direction = {k: torch.randn_like(w) for k, w in networks[i].items()}

        def at(step, i=i, direction=direction):
            moved = [{k: w + step * direction[k] * (j == i) for k, w in own.items()} for j, own in enumerate(networks)]
            theta = mixed(moved, r) if flags.get("hybrid_gradient") else hybrid
            return own_loss(i, moved, theta, t, views, y).item()

        expected = (at(1e-8) - at(-1e-8)) / 2e-8  # so small that hardly any ReLU changes its side
        found = sum((gradients[i][k] * d).sum().item() for k, d in direction.items())
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("interval", "expected"), [
    ("1_epoch", [("before", 8, GAMMA)]), ("5_batch", [("after", step, GAMMA) for step in (1, 6, 8, 13)])])
def test_when_the_networks_are_fused(interval, expected):
    """In two epochs of 7 steps. 1_epoch: before the second one. 5_batch: after steps 1 and 6 of each."""
    method, fused = make(interval=interval), []
    for step in range(1, 15):
        for moment in ("before", "after"):
            method.model.share = lambda gamma, now=(moment, step): fused.append((*now, gamma))
            getattr(method, f"{moment}_step")(step, (step - 1) % 7 + 1)
    assert fused == expected


def test_what_is_measured_is_the_state_before_the_fusion(tmp_path, evaluated):
    """The metrics of the last epoch are those of last.pth; its networks are not yet fused with the hybrid in it."""
    with few_digits():
        train_OKDPH.main([*FEW, "--num_epochs", "2", "--lr", "0.05", "--hybrid", "dirichlet", "--gamma", "1",
                          "--save_dir", str(tmp_path)])
        folder = tmp_path / "DIGITS" / "OKDPH-dirichlet" / "resnet8"
        measured, record = evaluated(folder / "last.pth")["metrics"], load(folder)["history"][-1]
    assert all(measured[name] == record[name] for name in record if "test_acc" in name or name.endswith("test_loss"))
    kept = load(folder)["state_dict"]
    assert not kept["heads.0.fc.weight"].equal(kept["heads.1.fc.weight"])  # with gamma 1, a fusion makes them equal
    model = read(folder / "last.pth").method.model
    for part, layer in (("head", "fc"), ("trunk", "conv1")):  # deployed: r_i = 1/m, not the weights drawn last
        mean = sum(kept[f"{part}s.{i}.{layer}.weight"] for i in range(4)) / 4
        used = model.hybrid.state_dict()[f"{part}.{layer}.weight"]
        assert used.allclose(mean, atol=1e-6) and not used.equal(kept[f"hybrid.{part}.{layer}.weight"])


@pytest.mark.parametrize("script", [train_OKDPH, train_PCL])
def test_a_run_of_older_code_is_not_continued(script, tmp_path):
    """It computed something else, and its checkpoint has no revision."""
    with few_digits():
        flags = [*FEW, "--save_dir", str(tmp_path), "--num_epochs"]
        script.main([*flags, "1"])
        (path,) = tmp_path.rglob("last.pth")
        checkpoint = load(path.parent)
        del checkpoint["digest"], checkpoint["unchangeable"]["revision"]
        path.write_bytes(serialise(checkpoint))
        for epochs in ("1", "2"):  # it is not complete either
            with pytest.raises(UserError, match="begun with revision 1 of (OKDPH|PCL), which computed something"):
                script.main([*flags, epochs, "--resume", "auto"])


def test_different_networks_from_the_command_to_the_export(tmp_path, evaluated, capsys):
    """Their names are in the log, in the metrics of evaluate.py and in the exported file."""
    with few_digits():
        train_DML.main(["--models", "resnet8", "resnet14", "--dataset", "DIGITS", "--device", "cpu", "--batch_size",
                        "32", "--num_epochs", "1", "--save_dir", str(tmp_path)])
        folder = tmp_path / "DIGITS" / "DML" / "resnet8+resnet14"
        assert "student 1, resnet14 " in (folder / "train.log").read_text()
        result = evaluated(folder)
        assert result["rows"]["stu1"] == "student 1, resnet14" and result["model"] == "resnet8+resnet14"
        evaluate.main([str(folder), "--export", str(tmp_path / "one.pth"), "--branch", "1"])
    assert read(tmp_path / "one.pth").flags.model == "resnet14"
    assert "resnet14" in capsys.readouterr().out
