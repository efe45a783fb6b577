"""How recorded flags are compared: when a run is resumed, and when report.py groups runs. Needs no PyTorch."""

# Flags that may differ between a run and its continuation: they do not change what is computed.
FREE_FLAGS = {"resume", "overwrite", "save_dir", "data_dir", "cache", "num_workers", "gpu_id", "device",
              "log_every", "num_epochs", "version", "T_model_path", "save_every", "save_steps"}
# Flags that the first runs did not have, with the values those runs would have had. Older checkpoints and records are
# read as if they named them.
LATER_FLAGS = {"train_size": 0, "detach_targets": False, "models": None, "decoder": "pil",
               "hybrid_gradient": False, "interval": "1_epoch"}
