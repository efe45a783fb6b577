"""What a training script hands to ``fit``, made by its own main, with random images instead of a data set."""

import importlib

import torch

import data_loader
import methods
import models
from benchmarks import compare
from training import loop
from training.loop import Stepper

VARIANTS = {  # name of a run's folder -> flags: what methods can compute besides the entries of METHODS
    **{f"OKDDip-{name}": f"--aggregation {name}" for name in models.AGGREGATIONS if name != "attention"},
    "OKDDip-no_leader": "--no_leader", "OKDDip+KD": "--T_model resnet8", "DML-pairwise": "--type pairwise",
    "KDCL-naive": "--target naive", "KDCL-minlogit": "--target minlogit", "OKDPH-dirichlet": "--hybrid dirichlet",
    "OKDPH-hybrid_gradient": "--hybrid_gradient"}


class Prepared:
    """method, train_loader, test_loader, run: the arguments of ``fit``. trainer: the Stepper, as ``fit`` makes it.

    name: in METHODS or VARIANTS. flags: more flags of its script. images: for training, for testing.
    """

    def __init__(self, patch, name: str, *flags: str, images: tuple[int, int], dtype: torch.dtype = torch.float32):
        """patch: pytest's monkeypatch."""
        entry, inputs, data = methods.METHODS.get(name), [], compare.random_data(*images, seed=0)
        script = importlib.import_module((entry or methods.FAMILIES[methods.family(name)]).module)
        with patch.context() as for_a_while:
            for_a_while.setattr(loop, "fit", lambda *given: inputs.extend(given))
            for_a_while.setattr(script, "load_teacher", lambda name, path, data:
                                models.create_model(name, data.num_classes).eval().requires_grad_(False), raising=False)
            for_a_while.setitem(data_loader.DATASETS, "DIGITS", data._replace(read=lambda root, test_only: data))
            own = "--T_model resnet8" if name == "KD" else entry.flags if entry else VARIANTS[name]
            script.main(["--dataset", "DIGITS", "--model", "resnet8", "--batch_size", "8", *own.split(), *flags])
        self.method, self.train_loader, self.test_loader, self.run = inputs
        for network in (self.method.model, self.method.teacher):
            if network is not None:
                network.to(dtype)
        for loader in (self.train_loader, self.test_loader):
            loader.normalise = lambda pixels, own=loader.normalise: own(pixels).to(dtype)
        args, device = self.run.args, self.run.device
        self.trainer = Stepper(self.method, args.lr, args.wd, [150, 225], device, args.amp, args.compile)

    def watch(self, batches):
        """In the place of ``Signals.watch``: tests replace it, to see the batches of training and evaluation."""
        return batches

    def epoch(self) -> dict:
        """Train and measure the next epoch as ``fit`` does; -> its record."""
        self.run.history.append(loop.one_epoch(self.method, self.trainer, self.train_loader,
                                               {"test": self.test_loader}, self.run, signals=self, checkpoints=None))
        return self.run.history[-1]
