"""Names of networks and recipes in tables and figures."""

NETWORKS = {"densenetd40k12": "DenseNet-40-12", "densenetd100k12": "DenseNet-100-12", "wide_resnet20_8": "WRN-20-8"}


def network_title(model: str) -> str:
    """A network's name as the paper writes it; for a group of different networks "ResNet-32 + VGG-16"."""
    return " + ".join(NETWORKS.get(name) or name.replace("resnet", "ResNet-").replace("vgg", "VGG-")
                      for name in model.split("+"))


def recipe_title(recipe: dict) -> str:
    """The flags of records.RECIPE as a heading."""
    steps = " and ".join(str(epoch) for epoch in recipe["milestones"] if epoch < recipe["num_epochs"])
    words = [f"{recipe['num_epochs']} epoch{'s' * (recipe['num_epochs'] > 1)}", f"batches of {recipe['batch_size']}",
             f"learning rate {recipe['lr']:g}" + (f", divided by 10 after epochs {steps}" if steps else ""),
             f"weight decay {recipe['wd']:g}"]
    if recipe.get("train_size", 0):
        words.append(f"trained on {recipe['train_size']} training images")
    if recipe["val_size"]:
        words.append(f"best epoch chosen on {recipe['val_size']} held-out training images")
    words += [f"--{name}" for name in ("compile", "tf32", "sync_bn") if recipe[name]]
    words += [f"--amp {recipe['amp']}"] if recipe["amp"] != "off" else []
    words += [f"--decoder {recipe['decoder']}"] if recipe.get("decoder", "pil") != "pil" else []
    return "; ".join(words)


def data_title(flags: dict) -> str:
    """A data set and the number of its classes."""
    return f"{flags['dataset']} ({len(flags['classes'])} classes)"
