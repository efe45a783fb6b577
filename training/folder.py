"""Where a run's files are, and which files are its own."""

import argparse
import errno
import json
import os
import shlex
import shutil
from pathlib import Path

from runtime.errors import UserError
from training.flags import NO_FLAGS, changed, gone

# What a run writes into its folder, besides TensorBoard's event files and the lock.
FILES = ("train.log", "last.pth", "best.pth", "metrics.jsonl", "test_best_metrics.json", "summary.json",
         "parameters.json")


def folder_name(args: argparse.Namespace) -> str:
    """The last part of a run's path: <model>[_<version>]."""
    return args.model if args.version == "V0" else f"{args.model}_{args.version}"


def run_folder(args: argparse.Namespace, method: str = "") -> Path:
    """<save_dir>/<dataset>/[<method>/]<model>[_<version>], or the folder of the run that --resume names.

    Creates nothing. UserError if another run is there; the message names the ways out. OSError if a name is too long.
    """
    if args.resume and args.resume != "auto":
        path = Path(args.resume)
        return path if path.is_dir() else path.parent
    path = Path(args.save_dir, args.dataset, method, folder_name(args))
    if any(len(os.fsencode(part)) > 255 for part in path.parts):  # the limit of nearly all file systems
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise UserError(f"{place} is a file, but the run's folder must be there: change --save_dir or --version")
    if any((path / file).exists() for file in FILES) and not (args.overwrite or args.resume):
        raise UserError(f"{path} holds a run already: continue it with --resume {path}, name this one with --version, "
                        "or replace it with --overwrite")
    if args.resume and (path / "best.pth").exists() and not (path / "last.pth").exists():
        raise UserError(f"{path} holds a best.pth and no last.pth to continue from: name this run with --version, or "
                        "replace what is there with --overwrite")
    return path


def finished_run(args: argparse.Namespace, script: str) -> Path | None:
    """The folder of the run that --resume names, if its records say that it is finished. Needs no PyTorch.

    Its epochs must be those of --num_epochs; the flags those of ``args``; the script (a name without its ending) the
    same, and with both the method. None: it has to be asked whether it may be resumed (``load_to_resume``).
    """
    folders = [Path(args.resume)] if args.resume else []
    if args.resume == "auto":
        place, name = Path(args.save_dir, args.dataset), folder_name(args)
        folders = [place / name, *(path / name for path in sorted(place.glob("*")))]
    for folder in folders:
        recorded, command = finished_records(folder)
        flags = {name: value for name, value in recorded.items() if name not in NO_FLAGS}
        if (command and Path(command[0]).stem == script and flags["num_epochs"] == args.num_epochs
                and not gone(flags, vars(args)) and not changed(flags, vars(args))):
            return folder
    return None


def finished_records(folder: Path) -> tuple[dict, list[str]]:
    """parameters.json and the words of its command, if summary.json has the last of all epochs; else both empty."""
    try:
        parameters = json.loads((folder / "parameters.json").read_text())
        last = json.loads((folder / "summary.json").read_text())["last"]["epoch"]
        if last == parameters["num_epochs"] and (folder / "last.pth").exists():
            return parameters, shlex.split(str(parameters["command"]))
    except (OSError, ValueError, LookupError, TypeError):
        pass  # no run, or damaged
    return {}, []


def belongs_to_run(path: Path) -> bool:
    """Whether the file is one that a run has written."""
    return path.name in FILES and (path.parent / "parameters.json").exists()


def remove_curves(folder: Path) -> None:
    """Delete a run's TensorBoard files."""
    for events in folder.glob("events.out.tfevents.*"):
        events.unlink()
    shutil.rmtree(folder / "B", ignore_errors=True)


def remove_run(folder: Path) -> None:
    """Delete the files of a run in ``folder``, and no other file."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
        (folder / (name + ".tmp")).unlink(missing_ok=True)
    remove_curves(folder)
