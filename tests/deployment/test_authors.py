"""Methods are recognised by the parameter names of the authors' code."""

import models
from deployment.authors import count_classes, recognise


def test_densenet_and_vgg():
    """Branch names that only these networks have: groups of three, 7 classes."""
    for name, kind in (("vgg16", models.OKDDip), ("densenetd40k12", models.Branches)):
        model = kind(name, 7, 3)
        theirs = {models.official.official_names(key, model)[-1]: value for key, value in model.state_dict().items()}
        method, group = recognise(theirs)
        assert method == ("OKDDip" if name == "vgg16" else "Ind") and group["num_branches"] == 3
        assert not group["MulStu"] and count_classes(theirs) == 7


def test_a_single_network():
    theirs = {key.partition(".")[2]: value for key, value in models.create_model("resnet8", 5).state_dict().items()}
    assert recognise(theirs) == ("baseline", {}) and count_classes(theirs) == 5
