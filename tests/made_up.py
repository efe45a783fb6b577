"""Records of runs that were never run, with metrics that a test chooses."""

import json

from methods import family

FLAGS = {"model": "resnet32", "dataset": "CIFAR100", "classes": ["a", "b"], "mean": [0.5] * 3, "std": [0.25] * 3,
         "num_epochs": 2, "batch_size": 128, "lr": 0.1, "schedule": None, "milestones": [1, 2], "wd": 5e-4,
         "dropout": 0.0, "efficient": False, "val_size": 0, "amp": "off", "compile": False, "tf32": False,
         "sync_bn": False, "data_dir": "./Data", "save_dir": ".", "device": None, "num_workers": 8, "weights": 1000,
         "environment": {}, "starts": []}


def run(root, method, seed, errors, *, output=None, **flags):
    """Write a run folder.

    errors: for each epoch, the test error of the method's own output, or a dictionary of metrics. output: the method's
    own output; by default the leader for OKDDip, the network for single networks, else the mean of the students.
    """
    default = {"OKDDip": "stu_", "baseline": "", "KD": ""}.get(family(method), "mean_")
    output = default if output is None else output
    group = {} if output == "" else {"num_branches": 4}
    if family(method) in ("Ind", "CL", "ONE", "OKDDip"):
        group["MulStu"] = "-N" in method
    flags = {**FLAGS, **group, "method": method, "seed": seed, "version": f"seed{seed}", "num_epochs": len(errors),
             "command": f"train.py --seed {seed}", "weights": 1000 * flags.get("num_branches", 4), **flags}
    folder = root / f"{method}_{flags['model']}_{flags['dataset']}_{flags['version']}_{flags.get('num_branches', 1)}"
    folder.mkdir(parents=True)
    (folder / "parameters.json").write_text(json.dumps(flags))
    records = [error if isinstance(error, dict) else {f"{output}test_accTop1": 100 - error} for error in errors]
    if output:
        records = [{"test_accTop1": 60.0, "mean_test_accTop1": 50.0, "dist": 0.25, **record} for record in records]
    lines = [json.dumps({"epoch": e, **record}) for e, record in enumerate(records, 1)]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder
