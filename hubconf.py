"""For torch.hub, from a clone or from GitHub:

    network = torch.hub.load(REPOSITORY, "resnet32", source="local")                 # drawn weights, 10 classes
    network = torch.hub.load(REPOSITORY, "okddip", "leader.pth", source="local")     # what evaluate.py exported

Every network of ``models.NETWORKS`` is an entry point.
"""

import sys as _sys
from pathlib import Path as _Path

_HERE = _Path(__file__).resolve().parent


def _own_modules():
    """This project's modules export and models, without a trace in sys.modules: whoever calls torch.hub.load may have
    a ``models`` or ``utils`` of their own, before or after."""
    names = {path.stem for path in _HERE.glob("*.py")} | {"models"}

    def of_these_names():
        return {name: _sys.modules.pop(name) for name in list(_sys.modules) if name.partition(".")[0] in names}

    theirs = of_these_names()
    _sys.path.insert(0, str(_HERE))
    try:
        import export

        import models

        return export, models
    finally:
        _sys.path.remove(str(_HERE))
        of_these_names()
        _sys.modules.update(theirs)


_export, _models = _own_modules()
dependencies = ["torch", "torchvision", "numpy"]


def okddip(file: str):
    """A network that ``evaluate.py RUN --export FILE`` wrote (.pth; with their packages .safetensors, .onnx, .pt2).

    In evaluation mode: images float32 [B, 3, .size, .size], their pixels in 0..1 normalised by .mean and .std -> logits
    [B, C] of .classes.
    """
    return _export.load(file)


def _entry_point(name: str):
    def build(num_classes: int = 10, **options):
        return _models.create_model(name, num_classes, **options)

    build.__name__ = name
    build.__doc__ = (f"{name} with freshly drawn weights: images float32 [B, 3, H, W] -> logits [B, num_classes].\n\n"
                     "options: dropout (VGG), efficient (DenseNet).")
    return build


globals().update({name: _entry_point(name) for name in _models.NETWORKS})
