"""Kill trainings at random moments, resume them, and compare with ones that were left alone.

Each of METHODS, with 0 and with 2 workers, on random images and a slow disk, so that many kills hit a save.
"""

import random
import re
import signal
import time

import numpy as np
from PIL import Image
from processes import Training, assert_same_run, epochs

FLAGS = ["--model", "resnet8", "--dataset", "folder", "--batch_size", "8", "--lr", "0.02", "--schedule", "2",
         "--device", "cpu"]
METHODS = {"OKDDip": ("train_GL", ["--length", "3"]), "ONE": ("train_one", ["--length", "3"]),
           "KD": ("train_kd", ["--T_model", "resnet14", "--save_steps", "2"]),
           "FFL": ("train_FFL", ["--length", "3", "--num_branches", "2"]),
           "PCL": ("train_PCL", ["--length", "3", "--num_branches", "2", "--save_steps", "2"]),
           "KDCL-general": ("train_KDCL", ["--target", "general", "--val_size", "6", "--num_branches", "2"]),
           "OKDPH-dirichlet": ("train_OKDPH", ["--hybrid", "dirichlet", "--num_branches", "2", "--save_steps",
                                                "2"])}
WORKERS = {0: ["--num_workers", "0"], 2: ["--num_workers", "2", "--cache", "off"]}


def make_images(root, per_class=12):
    """Two classes of noise, one of them redder."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for shift, name in ((0, "blue"), (60, "red")):
            (root / part / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 190, (32, 32, 3), dtype=np.uint8)
                pixels[..., 0] += np.uint8(shift)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def command(method, workers, images, teacher, num_epochs):
    script, flags = METHODS[method]
    where = ["--T_model_path", teacher] if method == "KD" else []
    return script, [*FLAGS, *flags, *where, *WORKERS[workers], "--data_dir", images, "--num_epochs", num_epochs]


def kill_and_compare(method, workers, images, teacher, root, kills, seed=0):
    """Compare a run with one that is killed ``kills`` times; -> the number of kills that came during a save."""
    rng, num_epochs, amid_save = random.Random(f"{seed} {method} {workers}"), kills + 3, 0
    script, argv = command(method, workers, images, teacher, num_epochs)
    folders = [root / name / "folder" / method / "resnet8" for name in ("whole", "killed")]
    start = time.monotonic()
    whole = Training(script, [*argv, "--save_dir", root / "whole"], root, slow_disk=True)
    assert whole.wait(60 + 30 * num_epochs) == 0, whole.said()
    epoch = (time.monotonic() - start) / num_epochs
    argv += ["--save_dir", root / "killed", "--resume", "auto"]
    for kill in range(1, kills + 1):
        training = Training(script, argv, root, slow_disk=True)
        training.until(lambda: epochs(folders[1]) >= kill)  # noqa: B023
        time.sleep(rng.uniform(0, epoch))
        training.signal(signal.SIGKILL)
        assert training.wait() == -signal.SIGKILL, "killed after it had finished"
        amid_save += any(file.stat().st_mtime > training.started for file in folders[1].glob("*.tmp.*"))
        assert kill <= epochs(folders[1]) < num_epochs
    last = Training(script, argv, root)
    assert last.wait(60 + 30 * num_epochs) == 0, last.said()
    assert_same_run(folders[1], folders[0])
    begun = re.findall(r"continues after (\d+) epochs", (folders[1] / "train.log").read_text())
    assert begun and all(int(done) >= 1 for done in begun), f"one started anew: {begun}"
    return amid_save


def make_teacher(images, root):
    training = Training("train", [*FLAGS[2:], "--model", "resnet14", "--data_dir", images, "--num_epochs", "1",
                                  "--save_dir", root], root)
    assert training.wait() == 0, training.said()
    return root / "folder" / "resnet14"
