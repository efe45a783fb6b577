"""A run: its device, its folder, the checkpoint that it resumes, its seed."""

import argparse
import logging
from typing import NoReturn

from models import registry
from models.imagenet import NETWORKS as LARGE
from runtime import processes
from runtime.device import pick_device, seed_everything, set_precision
from runtime.errors import UserError, warn
from training.folder import remove_run, run_folder
from training.lock import Lock
from training.log import close_log, log, open_log
from training.resume import checkpoint_to_resume, load_to_resume


class Run:
    """A run of ``method`` (a name) with the flags ``args``. ``with run:`` opens its folder.

    Create it before the data and the model. Creating it writes no file. UserError if a network, the device, the folder
    or the checkpoint to resume is wrong.
    """

    def __init__(self, args: argparse.Namespace, method: str = ""):
        self.args, self.method = args, method
        self.check_networks()
        self.device = pick_device(args.device, args.gpu_id, args.sync_bn)
        processes.start(self.device)
        self.folder = processes.on_main(lambda: run_folder(args, method))
        self.lock: Lock | None = None
        self.checkpoint = processes.on_main(self.load_checkpoint)
        self.history: list[dict] = self.checkpoint["history"] if self.checkpoint else []
        # The schedule and the ramp-up are those of the first start, even if --num_epochs was raised later.
        self.recipe = self.checkpoint["recipe"] if self.checkpoint else {"num_epochs": args.num_epochs}
        set_precision(args.tf32)
        seed_everything(args.seed)

    def check_networks(self) -> None:
        """UserError if a network is unknown, or does not fit its flags or the images. A warning if they are small."""
        args = self.args
        names = getattr(args, "models", None) or [args.model]
        flags = dict.fromkeys(names, "--models" if len(names) > 1 else "--model")
        if getattr(args, "T_model", None):
            flags.setdefault(args.T_model, "--T_model")
        try:
            registry.find_each(flags)
            registry.find_each(names, dropout=args.dropout, efficient=args.efficient)
        except ValueError as error:
            self.refuse(str(error))
        for name, flag in flags.items():
            if args.dataset == "imagenet" and name.startswith("vgg"):
                self.refuse(f"argument {flag}: {name} is made for images of 32x32, not for imagenet")
            if args.dataset != "imagenet" and name in LARGE:
                warn(f"the images of --dataset {args.dataset} are 32x32, and {flag} {name} is made for 224x224: its "
                     "last feature map is 1x1 here (--dataset imagenet crops your own large images to 224x224)")

    @property
    def num_epochs(self) -> int:
        """--num_epochs of the first start."""
        return self.recipe["num_epochs"]

    def load_checkpoint(self) -> dict | None:
        """The checkpoint that this run continues, or None."""
        path = checkpoint_to_resume(self.args, self.folder)
        if path is None:
            return None
        if path.exists():  # locked before it is read, so that no other process replaces it meanwhile
            if not (self.folder / "lock").exists():  # nobody trains there: it may be refused before there is a lock
                load_to_resume(path, self.args, self.method, self.folder)
            self.lock = Lock(self.folder)
        return load_to_resume(path, self.args, self.method, self.folder)

    def check_revision(self, revision: int) -> None:
        """UserError if an older revision of the method began the run that is resumed (``Method.revision``)."""
        recorded = self.recipe.setdefault("revision", 1 if self.checkpoint else revision)
        if recorded != revision:
            self.refuse(f"{self.folder} was begun by older code, whose {self.method} computed something else "
                        "(CHANGELOG.md): train it anew, with --overwrite or another --version")

    def refuse(self, sentence: str) -> NoReturn:
        """Raise a UserError that all processes find, and one reports."""
        error = UserError(sentence)
        error.already_reported = not processes.is_main()
        raise error

    def check_unchanged(self, **values: object) -> None:
        """Record what must be the same whenever the run is resumed. UserError if a value differs from the record."""
        for name, value in values.items():
            recorded = self.recipe.setdefault(name, value)
            if recorded != value:
                self.refuse(f"{self.folder} was started with other {name} ({str(recorded)[:80]} there, "
                            f"{str(value)[:80]} here): resume it with the same {name}")

    def __enter__(self) -> "Run":
        """Make the folder, take its lock, open the log."""
        if processes.rank():
            log.handlers = [logging.NullHandler()]
            # All processes have drawn the same weights. From here on each draws for its own images.
            seed_everything((self.args.seed + 2**32 * processes.rank()) % 2**63)
        processes.on_main(self.open)
        return self

    def open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.lock is None:
            self.lock = Lock(self.folder)
            run_folder(self.args, self.method)  # UserError if another process has made a run of it meanwhile
            if self.args.resume and (self.folder / "last.pth").exists():
                raise UserError(f"another process has trained in {self.folder} meanwhile: start this one again")
            remove_run(self.folder)
        open_log(self.folder)

    def __exit__(self, *_) -> None:
        """Close the log, and let another process train here."""
        if processes.is_main():
            close_log()
            self.lock.release()
