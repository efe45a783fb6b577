"""How recorded flags are compared: when a run is resumed, and when report.py groups runs. Needs no PyTorch."""

# Flags that may differ between a run and its continuation: they do not change what is computed.
FREE_FLAGS = {"resume", "overwrite", "save_dir", "data_dir", "cache", "num_workers", "gpu_id", "device",
              "log_every", "num_epochs", "version", "T_model_path", "save_every", "save_steps"}
# Flags that the first runs did not have, with the values those runs would have had. Older checkpoints and records are
# read as if they named them.
LATER_FLAGS = {"train_size": 0, "detach_targets": False, "models": None, "decoder": "pil",
               "hybrid_gradient": False, "interval": "1_epoch"}
# The entries of parameters.json that are no flags.
NO_FLAGS = {"method", "milestones", "classes", "mean", "std", "weights", "command", "environment", "starts"}


def gone(recorded: dict, flags: dict) -> list[str]:
    """Recorded flags that were used and that this code no longer has."""
    return [f"--{name}" for name, value in recorded.items() if name not in flags and value not in (None, False)]


def changed(recorded: dict, flags: dict) -> list[str]:
    """Flags whose value is not the recorded one, with both values."""
    recorded = LATER_FLAGS | recorded
    return [f"--{name} {recorded.get(name)} there, {value} here" for name, value in flags.items()
            if name not in FREE_FLAGS and recorded.get(name) != value]
