"""What a training script hands to ``fit``, made by its own main, with random images instead of a data set."""

import importlib
from functools import partial

import torch

import data_loader
import methods
import models
from benchmarks import compare
from training import loop
from training.loop import Stepper


def normalised(normalise, dtype, pixels):
    """The images of a loader in another precision."""
    return normalise(pixels).to(dtype)


class Prepared:
    """method, train_loader, test_loader, run: the arguments of ``fit``. trainer: the Stepper, as ``fit`` makes it.

    name: of a run's folder. flags: of the script, besides those of methods.py. images: for training, for testing.
    """

    def __init__(self, patch, name: str, *flags: str, images: tuple[int, int], dtype: torch.dtype = torch.float32):
        """patch: pytest's monkeypatch."""
        entry, inputs, data = methods.METHODS.get(name), [], compare.random_data(*images, seed=0)
        script = importlib.import_module((entry or methods.FAMILIES[methods.family(name)]).module)
        with patch.context() as for_a_while:
            for_a_while.setattr(loop, "fit", lambda *given: inputs.extend(given))
            for_a_while.setattr(script, "load_teacher", lambda network, classes, path, size:
                                models.create_model(network, classes).eval().requires_grad_(False), raising=False)
            for_a_while.setitem(data_loader.DATASETS, "DIGITS", data._replace(read=lambda root, test_only: data))
            script.main(["--dataset", "DIGITS", "--batch_size", "8", *(entry.flags if entry else "").split(), *flags])
        self.method, self.train_loader, self.test_loader, self.run = inputs
        for network in (self.method.model, self.method.teacher):
            if network is not None:
                network.to(dtype)
        for loader in (self.train_loader, self.test_loader):
            loader.normalise = partial(normalised, loader.normalise, dtype)
        args, device = self.run.args, self.run.device
        self.trainer = Stepper(self.method, args.lr, args.wd, [150, 225], device, args.amp, args.compile)
