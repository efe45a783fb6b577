"""Records of runs that were never run, with figures that a test chooses."""

import json

FLAGS = {"model": "resnet32", "dataset": "CIFAR100", "classes": ["a", "b"], "mean": [0.5] * 3, "std": [0.25] * 3,
         "num_epochs": 2, "batch_size": 128, "lr": 0.1, "schedule": None, "milestones": [1, 2], "wd": 5e-4,
         "dropout": 0.0, "efficient": False, "val_size": 0, "amp": "off", "compile": False, "tf32": False,
         "sync_bn": False, "data_dir": "./Data", "save_dir": ".", "device": None, "num_workers": 8, "weights": 1000,
         "environment": {}, "starts": []}


def run(root, method, seed, errors, *, row=None, **flags):
    """A run folder; errors: the method's own test error in each epoch, or a dictionary of accuracies for each."""
    row = row if row is not None else "stu_" if method.startswith("OKDDip") else "" if method in ("baseline", "KD") \
        else "mean_"
    group = {} if row == "" else {"num_branches": 4}
    flags = {**FLAGS, **group, "method": method, "seed": seed, "version": f"seed{seed}", "num_epochs": len(errors),
             "command": f"train.py --seed {seed}", **flags}
    folder = root / f"{method}_{flags['model']}_{flags['dataset']}_{flags['version']}_{flags.get('num_branches', 1)}"
    folder.mkdir(parents=True)
    (folder / "parameters.json").write_text(json.dumps(flags))
    records = [error if isinstance(error, dict) else {f"{row}test_accTop1": 100 - error} for error in errors]
    if row:
        records = [{"test_accTop1": 60.0, "mean_test_accTop1": 50.0, "dist": 0.25, **record} for record in records]
    lines = [json.dumps({"epoch": e, **record}) for e, record in enumerate(records, 1)]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder
