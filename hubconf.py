"""For torch.hub, from a clone or from GitHub:

    network = torch.hub.load(REPOSITORY, "resnet32", source="local")                 # drawn weights, 10 classes
    network = torch.hub.load(REPOSITORY, "okddip", "leader.pth", source="local")     # what evaluate.py exported

Every network of ``models.NETWORKS`` is an entry point.
"""

import export as _export
import models as _models

dependencies = ["torch", "torchvision"]


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
