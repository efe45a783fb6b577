"""Command lines of short trainings, which tests stop, kill and continue."""

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


def command(method, workers, images, teacher, num_epochs):
    script, flags = METHODS[method]
    where = ["--T_model_path", teacher] if method == "KD" else []
    return script, [*FLAGS, *flags, *where, *WORKERS[workers], "--data_dir", images, "--num_epochs", num_epochs]
