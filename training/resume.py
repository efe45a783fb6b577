"""Which checkpoint a run continues from, and whether it may."""

import argparse
import json
from pathlib import Path

from runtime.checkpoints import load_checkpoint
from runtime.errors import Complete, UserError
from training.checkpoint import FORMAT, PARTS
from training.flags import changed, gone


def checkpoint_to_resume(args: argparse.Namespace, folder: Path) -> Path | None:
    """The file that --resume names; None if the run starts anew."""
    if not args.resume:
        return None
    if args.resume == "auto":
        path = folder / "last.pth"
        return path if path.exists() else None
    path = Path(args.resume)
    return path / "last.pth" if path.is_dir() else path


def load_to_resume(path: Path, args: argparse.Namespace, method: str, folder: Path) -> dict:
    """The checkpoint at ``path``. UserError if this run cannot continue it; Complete if that training has ended."""
    checkpoint = load_checkpoint(path)
    if checkpoint.get("format", FORMAT) != FORMAT:
        raise UserError(f"{path} has checkpoint format {checkpoint['format']}, this code resumes {FORMAT}")
    missing = [name for name, kind in PARTS.items() if not isinstance(checkpoint.get(name), kind)]
    if missing:
        raise UserError(f"{path} cannot be resumed: it has no {', '.join(missing)}")
    flags, recorded = {"method": method, **vars(args)}, checkpoint["flags"]
    unknown = gone(recorded, flags)
    if unknown and recorded["method"].partition("-")[0] == method.partition("-")[0]:  # another method has other flags
        raise UserError(f"{path} was started with {' and '.join(unknown)}, which this code no longer has: train it "
                        "anew, with --overwrite or another --version")
    if different := changed(recorded, flags):
        raise UserError(f"{path} was started with other flags ({'; '.join(different)}): resume with the same flags")
    done, planned = len(checkpoint["history"]), recorded["num_epochs"]
    if args.num_epochs < planned:
        raise UserError(f"--num_epochs of {folder} was {planned}: it can be raised, not lowered")
    last = folder / "last.pth"
    if path.name != "last.pth" and last.exists() and done < len(load_checkpoint(last)["history"]):
        raise UserError(f"{folder} has gone on since {path.name}: --resume {folder} continues it; to go back, copy "
                        f"{path.name} into another folder")
    if done >= args.num_epochs and is_finished(folder, checkpoint["history"]):
        raise Complete(folder, done)
    return checkpoint


def is_finished(folder: Path, history: list[dict]) -> bool:
    """Whether the summary, the last file that a training writes, is that of its last epoch."""
    try:
        return json.loads((folder / "summary.json").read_text())["last"] == history[-1]
    except (OSError, ValueError, LookupError):
        return False
