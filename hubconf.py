"""For torch.hub, from a clone or from GitHub:

    network = torch.hub.load(REPOSITORY, "resnet32", source="local")                 # random weights, 10 classes
    network = torch.hub.load(REPOSITORY, "okddip_resnet20", source="local")          # trained: results/weights
    network = torch.hub.load(REPOSITORY, "okddip", "leader.pth", source="local")     # exported by evaluate.py

Every network of ``models.NETWORKS`` is an entry point.
"""

import sys as _sys
from pathlib import Path as _Path

_HERE = _Path(__file__).resolve().parent


def _own_modules():
    """``deployment.formats`` and ``models`` of this project, without a trace in sys.modules and sys.path.

    The caller of torch.hub.load may have own modules named ``models`` or ``utils``, imported before or after.
    """
    names = {path.stem for path in _HERE.glob("*.py")} | {path.parent.name for path in _HERE.glob("*/__init__.py")}

    def remove():
        return {name: _sys.modules.pop(name) for name in list(_sys.modules) if name.partition(".")[0] in names}

    theirs = remove()
    _sys.path.insert(0, str(_HERE))
    try:
        import models
        from deployment import formats

        return formats, models
    finally:
        _sys.path.remove(str(_HERE))
        remove()
        _sys.modules.update(theirs)


_formats, _models = _own_modules()
dependencies = ["torch", "torchvision", "numpy", "safetensors"]


def okddip(file: str):
    """A network that ``evaluate.py RUN --export FILE`` wrote: .pth, .safetensors, .pt2 or, with its packages, .onnx.

    In evaluation mode: images float32 [B, 3, .size, .size] -> logits [B, C] of .classes. The pixels are in 0..1,
    normalised by .mean and .std.
    """
    return _formats.load(file)


def okddip_resnet20():
    """The leader of an OKDDip group, resnet20, trained on a JPEG copy of CIFAR-10 (results/weights/README.md).

    In evaluation mode, as from ``okddip``: images float32 [B, 3, 32, 32] -> logits [B, 10] of .classes.
    """
    return okddip(str(_HERE / "results" / "weights" / "okddip_resnet20.safetensors"))


def _entry_point(name: str):
    def build(num_classes: int = 10, **options):
        return _models.create_model(name, num_classes, **options)

    build.__name__ = name
    build.__doc__ = (f"{name} with random weights: images float32 [B, 3, H, W] -> logits [B, num_classes].\n\n"
                     "options: dropout (VGG), efficient (DenseNet).")
    return build


globals().update({name: _entry_point(name) for name in _models.NETWORKS})
