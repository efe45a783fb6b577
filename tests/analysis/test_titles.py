"""What a recipe is called."""

import made_up

from analysis.titles import recipe_title


def test_the_recipe_in_words():
    recipe = {**made_up.FLAGS, "num_epochs": 8, "milestones": [4, 6]}
    plain = "8 epochs; batches of 128; learning rate 0.1, divided by 10 after epochs 4 and 6; weight decay 0.0005"
    assert recipe_title(recipe) == plain
    assert recipe_title({**recipe, "val_size": 100, "amp": "bf16", "sync_bn": True}) == (
        f"{plain}; best epoch chosen on 100 held-out training images; --sync_bn; --amp bf16")
    assert recipe_title({**recipe, "train_size": 500}) == f"{plain}; trained on 500 training images"
    assert recipe_title({**recipe, "decoder": "fast"}) == f"{plain}; --decoder fast"
    assert recipe_title({**recipe, "decoder": "pil"}) == plain
    short = recipe_title({**recipe, "num_epochs": 1, "milestones": [1, 1]})
    assert short == "1 epoch; batches of 128; learning rate 0.1; weight decay 0.0005"
