"""For torch.hub, from a clone or from GitHub:

    network = torch.hub.load(REPOSITORY, "resnet32", source="local")                 # random weights, 10 classes
    network = torch.hub.load(REPOSITORY, "okddip_resnet20", source="local")          # trained: results/weights
    network = torch.hub.load(REPOSITORY, "okddip", "leader.pth", source="local")     # exported by evaluate.py
    group = torch.hub.load(REPOSITORY, "group", "OKDDip", student=make, source="local")     # for your own loop

Every network of ``models.NETWORKS`` is an entry point.
"""

import sys as _sys
from contextlib import contextmanager as _contextmanager
from contextlib import redirect_stderr as _redirect_stderr
from io import StringIO as _StringIO
from pathlib import Path as _Path
from types import ModuleType as _ModuleType

_HERE = _Path(__file__).resolve().parent
_NAMES = {path.stem for path in _HERE.glob("*.py")} | {path.parent.name for path in _HERE.glob("*/__init__.py")}
# The modules of this project that have been imported, also by an earlier torch.hub.load.
_OURS = {name.partition(".")[2]: module for name, module in list(_sys.modules.items())
         if name.startswith("okddip_hub.") and _HERE in _Path(module.__file__).parents}


def _take() -> dict:
    """Remove the modules with this project's names from sys.modules, and return them."""
    return {name: _sys.modules.pop(name) for name in list(_sys.modules) if name.partition(".")[0] in _NAMES}


@_contextmanager
def _own_modules():
    """A context in which ``import`` finds this project's modules. After it, their names are those of the caller again.

    The caller of torch.hub.load may have its own ``models`` or ``utils``, imported before or after. Pickle finds the
    classes of this project in the modules okddip_hub.NAME.
    """
    theirs = _take()
    _sys.modules.update(_OURS)
    _sys.path.insert(0, str(_HERE))
    try:
        yield
    finally:
        _sys.path.remove(str(_HERE))
        new = {name: module for name, module in _take().items() if name not in _OURS}
        _OURS.update(new)
        _sys.modules.update(theirs)
        _sys.modules.setdefault("okddip_hub", _ModuleType("okddip_hub"))
        _sys.modules.update({f"okddip_hub.{name}": module for name, module in new.items()})
        for name, module in new.items():
            for value in vars(module).values():
                if isinstance(value, (type, type(_take))) and value.__module__ == name:
                    value.__module__ = f"okddip_hub.{name}"


with _own_modules():
    import methods as _methods
    import models as _models
    from deployment import formats as _formats
    from training.method import GroupInALoop as _GroupInALoop

dependencies = ["torch", "torchvision", "numpy", "safetensors"]


def okddip(file: str, definition: str | None = None):
    """A network that ``evaluate.py RUN --export FILE`` wrote: .pth, .safetensors, .pt2 or, with its packages, .onnx.

    In evaluation mode: images float32 [B, 3, .size, .size] -> logits [B, C] of .classes. The pixels are in 0..1,
    normalised by .mean and .std; .preprocess(image) prepares a Pillow image. definition: PATH/FILE.py:NAME, for a
    network that is defined in a Python file, which is imported. (torch.hub.load has a parameter ``model`` itself.)
    """
    with _own_modules():
        return _formats.load(file, definition)


def group(method: str = "OKDDip", student="resnet32", num_students: int = 4, num_classes: int = 10, **flags):
    """A group of students and its loss, for your own training loop (docs/own_project.md).

    method: a name in METHODS of methods.py. student: the name of a network as in --model, or a function or class that
    makes a network if it is called with ``num_classes=C``; a list of them if the students are different networks.
    Inside the function, ``models`` and ``utils`` are this project's: import your own outside.
    flags: those of the method's script, without dashes: MulStu, branch_at, image_size, temperature, ... They choose
    the method's variants, too.

    -> a module. Its ``forward`` is that of the method's model; ``loss(images, labels, weight)`` returns the terms.
    ValueError if the method, or a flag or its value, does not exist.
    """
    with _own_modules():
        if method not in _methods.METHODS:
            raise ValueError(f"unknown method {method!r}; known are {', '.join(_methods.METHODS)}")
        _, of_the_loop = _methods.find("baseline")
        used = (*_models.registry.OPTIONS, "seed")  # the seed: by OKDPH's mixing weights
        others = {*vars(of_the_loop), "start_consistency", "length", "choose_E"}.difference(used)
        if useless := [name for name in flags if name in others]:
            raise ValueError(f"{useless[0]} is a flag of this project's training loop, not of {method}")
        size = {"num_branches": num_students} if _methods.METHODS[method].group else {}
        Kind, args = _parsed(method, size | flags)
        if unknown := [name for name in flags if name not in args]:  # with the value False, which _parsed leaves out
            raise ValueError(f"{method} has no flag {unknown[0]}")
        if isinstance(student, list | tuple) and "models" not in args:
            raise ValueError(f"the students of {method} are equal networks: name one")
        args.model = student
        if getattr(args, "T_model", None) or getattr(args, "target", "") == "general":
            raise ValueError("a teacher and KDCL's general target need the scripts: train_kd.py, train_GL.py, "
                             "train_KDCL.py")
        return _GroupInALoop(Kind(args, num_classes))


def _parsed(method: str, flags: dict) -> tuple:
    """What ``methods.find`` returns for flags. ValueError if the method's script refuses them."""
    own = _methods.METHODS[method]
    for name, other in _methods.METHODS.items():
        of_other = [flag for flag in other.flags.split() if flags.get(flag[2:])]
        if other.module == own.module and other.definition != own.definition and of_other:
            raise ValueError(f"{of_other[0][2:]} makes {method} another method: ask for {name}")
    words = [flag for flag in own.flags.split() if flags.get(flag[2:]) is not False]
    words += ["--batch_size", str(2**31 - 1)]  # enough for any number of processes
    for name, value in flags.items():
        if value is not None and value is not False:
            values = [] if value is True else value if isinstance(value, list | tuple) else [value]
            words += [f"--{name}", *map(str, values)]
    said = _StringIO()
    try:
        with _redirect_stderr(said):
            return _methods.find(method, words)
    except SystemExit as error:
        raise ValueError(said.getvalue().removeprefix("error: ").strip() or "a flag has a wrong value") from error


def okddip_resnet20():
    """The leader of an OKDDip group, resnet20, trained on a JPEG copy of CIFAR-10 (results/weights/README.md).

    In evaluation mode, as from ``okddip``: images float32 [B, 3, 32, 32] -> logits [B, 10] of .classes.
    """
    return okddip(str(_HERE / "results" / "weights" / "okddip_resnet20.safetensors"))


def _entry_point(name: str):
    def build(num_classes: int = 10, **options):
        with _own_modules():
            return _models.create_model(name, num_classes, **options)

    build.__name__ = name
    build.__doc__ = (f"{name} with random weights: images float32 [B, 3, H, W] -> logits [B, num_classes].\n\n"
                     "options: dropout (VGG), efficient (DenseNet).")
    return build


globals().update({name: _entry_point(name) for name in _models.NETWORKS})
