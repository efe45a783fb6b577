"""A run's folder, before PyTorch is imported: its path and files, its lock, and whether the run in it is finished."""

import argparse
import errno
import hashlib
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

from methods import revision
from runtime.errors import UserError, warn
from runtime.files import temporary_name

try:
    import fcntl
except ImportError:  # Windows has none; two processes in one folder are not detected there
    fcntl = None

# What a run writes into its folder, besides TensorBoard's event files and the lock.
FILES = ("train.log", "last.pth", "best.pth", "metrics.jsonl", "test_best_metrics.json", "summary.json",
         "parameters.json")

# --- recorded flags: how they are compared when a run is resumed, and when report.py groups runs ----------------------

# Flags that may differ between a run and its continuation: they do not change what is computed.
FREE_FLAGS = {"resume", "overwrite", "save_dir", "data_dir", "cache", "num_workers", "gpu_id", "device",
              "log_every", "num_epochs", "version", "T_model_path", "save_every", "save_steps"}
# Flags that the first runs did not have, with the values those runs would have had. Older checkpoints and records are
# read as if they named them.
LATER_FLAGS = {"train_size": 0, "detach_targets": False, "models": None, "decoder": "pil",
               "hybrid_gradient": False, "interval": "1_epoch", "image_size": None, "optimizer": "sgd", "cosine": False,
               "warmup": 0, "label_smoothing": 0.0, "branch_at": None, "classifier": None, "pretrained": False,
               "init": None}


def changed(recorded: dict, flags: dict) -> list[str]:
    """Flags whose value is not the recorded one, with both values."""
    recorded = LATER_FLAGS | recorded
    return [f"--{name} {recorded.get(name)} there, {value} here" for name, value in flags.items()
            if name not in FREE_FLAGS and recorded.get(name) != value]


# --- paths ------------------------------------------------------------------------------------------------------------


def run_path(args: argparse.Namespace, method: str = "baseline", model: str = "", version: str = "V0") -> Path:
    """<save_dir>/<dataset>/[<method>/]<model>[_<version>]: where a run is. A baseline has no folder of its method.

    timm:NAME becomes timm-NAME, and PATH/FILE.py:NAME becomes FILE-NAME.
    """
    model = re.sub(r"[^+]*/", "", model).replace(".py:", "-").replace(":", "-")
    name = model if version == "V0" else f"{model}_{version}"
    return Path(args.save_dir, args.dataset, "" if method == "baseline" else method, name)


def run_folder(args: argparse.Namespace, method: str) -> tuple[Path, Path | None]:
    """-> the folder of a run, and the checkpoint that it continues: None if it starts from the beginning.

    Creates nothing. UserError if another run is there.
    """
    if args.resume and args.resume != "auto":
        path = Path(args.resume)
        return (path, path / "last.pth") if path.is_dir() else (path.parent, path)
    folder = run_path(args, method, args.model, args.version)
    if any((folder / file).exists() for file in FILES) and not (args.overwrite or args.resume):
        raise UserError(f"{folder} holds a run already: continue it with --resume {folder}, name this one with "
                        "--version, or replace it with --overwrite")
    last = folder / "last.pth"
    if args.resume and last.exists():
        return folder, last
    # The first epoch of a run writes last.pth and best.pth, and then the other two.
    left = [file for file in ("best.pth", "metrics.jsonl", "summary.json") if (folder / file).exists()]
    if args.resume and left:
        raise UserError(f"{folder} holds a {left[0]} and no last.pth to continue from: name this run with --version, "
                        "or replace what is there with --overwrite")
    return folder, None


def belongs_to_run(path: Path) -> bool:
    """Whether a run has written the file."""
    return path.name in FILES and (path.parent / "parameters.json").exists()


def remove_curves(folder: Path) -> None:
    """Delete a run's TensorBoard files."""
    for events in [*folder.glob("events.out.tfevents.*"), *folder.glob("B/events.out.tfevents.*")]:
        events.unlink()
    if (folder / "B").is_dir() and not any((folder / "B").iterdir()):
        (folder / "B").rmdir()


def remove_run(folder: Path) -> None:
    """Delete the files of a run in ``folder``, and no other file."""
    for path in (folder / name for name in FILES):
        path.unlink(missing_ok=True)
        temporary_name(path).unlink(missing_ok=True)
    remove_curves(folder)


# --- finished runs ----------------------------------------------------------------------------------------------------


def finished_run(args: argparse.Namespace, script: str) -> Path | None:
    """The folder of the run that --resume names, if its records say that it is finished.

    Its epochs, flags and script (a name without its ending) must be those of this start: they determine the method.
    None: ``load_to_resume`` decides whether it may be resumed. Its checkpoints may have been deleted.
    """
    folders = [Path(args.resume)] if args.resume else []
    if args.resume == "auto":  # the name of the method needs PyTorch
        baseline = run_path(args, model=args.model, version=args.version)
        folders = [baseline, *(path / baseline.name for path in sorted(baseline.parent.glob("*")))]
    for folder in folders:
        try:
            recorded = json.loads((folder / "parameters.json").read_text())
            command, *_ = shlex.split(str(recorded["command"]))
            flags = vars(args)
            if args.image_size is None and ":" in args.model:  # PyTorch is needed to know the network's own size
                flags = flags | {"image_size": recorded["image_size"]}
            own = run_path(args, recorded["method"], args.model, args.version)
            if args.resume == "auto" and own != folder:
                continue  # it was moved: this run begins anew
            if recorded.get("revision", 1) != revision(recorded["method"]):
                continue
            if (Path(command).stem == script and finished_epochs(folder) == recorded["num_epochs"] == args.num_epochs
                    and not changed(recorded, flags) and not edited(recorded.get("files", {}))):
                return folder
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # no run, or damaged
    return None


def edited(files: dict[str, str]) -> bool:
    """Whether a Python file that makes a network has changed. files: PATH/FILE.py:NAME -> the start of its SHA-256."""
    return any(not hashlib.sha256(Path(name.rpartition(":")[0]).read_bytes()).hexdigest().startswith(sha256)
               for name, sha256 in files.items())


def finished_epochs(folder: Path) -> int:
    """The epochs of a training that has reached its end: summary.json is the last file that it writes. 0: none has."""
    try:
        return json.loads((folder / "summary.json").read_text())["last"]["epoch"]
    except (OSError, ValueError, LookupError, TypeError):
        return 0


# --- one process per run folder ---------------------------------------------------------------------------------------


class Lock:
    """Locks a run's folder until ``release`` or the end of the process. UserError if another process has locked it.

    A POSIX record lock: the system releases it however the process ends. The data loader's workers would inherit a
    flock, and they live some seconds longer than a killed process.
    """

    def __init__(self, folder: Path):
        self.file = open(folder / "lock", "a")
        try:
            if fcntl is not None:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                warn(f"{folder} is on a file system without locks ({error.strerror}): make sure that no other process "
                     "trains there")
                return
            self.file.close()
            raise UserError(f"another process is training in {folder}: wait for it, or name this run with "
                            "--version") from error

    def release(self) -> None:
        self.file.close()


if __name__ == "__main__":  # slurm.sh: print the command lines on standard input whose runs are not finished
    for line in sys.stdin:
        sys.argv[0], *words = shlex.split(line)[1:]
        script = Path(sys.argv[0]).stem
        try:
            known = finished_run(importlib.import_module(script).parse_args(words), script)
        except ImportError:  # this Python has no PyTorch, as on a login node: a finished run then ends at once
            known = None
        if not known:
            print(line, end="")
