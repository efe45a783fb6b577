"""Whether a command line has nothing left to do, decided in milliseconds: needs no PyTorch.

A training that ends writes a receipt into summary.json: a digest of last.pth, of the last epoch's record, of the
command line and of the code. ``--resume auto`` decides from nothing else. So if all of them are the same, it would say
that the run is complete. In all other cases it has to be asked.
"""

import hashlib
import itertools
import json
from pathlib import Path

from runtime.errors import UserError
from training.lock import Lock

ROOT = Path(__file__).resolve().parent.parent
# What a training imports.
CODE = ("*.py", "deployment/*.py", "loading/*.py", "models/*.py", "runtime/*.py", "training/*.py")


def code_digest() -> str:
    """SHA-256 of the code of a training."""
    sha = hashlib.sha256()
    for path in sorted(path for pattern in CODE for path in ROOT.glob(pattern)):
        sha.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return sha.hexdigest()


def receipt(folder: Path, last: dict, command: list[str], code: str) -> str:
    """SHA-256 of a finished run. last: the record of its last epoch. command: script and flags. code: its digest.

    The scripts append --gpu_id, which changes from start to start: at the end of a command it does not count.
    """
    command = command[:-2] if "--gpu_id" in command[-2:-1] else command
    sha = hashlib.sha256(json.dumps([last, command, code]).encode())
    sha.update((folder / "last.pth").read_bytes())
    return sha.hexdigest()


def finished_run(command: list[str]) -> str | None:
    """What ``--resume auto`` would print for this command line (script and flags) if its run is finished, else None."""
    given = dict(zip(command, command[1:], strict=False))
    if "--models" in command:
        following = command[command.index("--models") + 1:]
        given["--model"] = "+".join(itertools.takewhile(lambda word: not word.startswith("--"), following))
    names = [given.get(flag, "") for flag in ("--save_dir", "--dataset", "--model", "--version")]
    if given.get("--resume") != "auto" or "" in names or "--overwrite" in command:
        return None
    save_dir, dataset, model, version = names
    place, name = Path(save_dir, dataset), f"{model}_{version}"
    code = code_digest()
    for folder in [place / name, *(path / name for path in sorted(place.glob("*")))]:
        lock = None
        try:
            summary = json.loads((folder / "summary.json").read_text())
            lock = Lock(folder)  # as a training does
            if summary.get("receipt") == receipt(folder, summary["last"], command, code):
                return f"{folder} is complete: {summary['last']['epoch']} epochs (more with --num_epochs)"
        except (OSError, ValueError, LookupError, TypeError, AttributeError, UserError):
            pass  # no run, or not as a training left it
        finally:
            if lock is not None:
                lock.release()
    return None
