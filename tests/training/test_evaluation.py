import pytest
import torch
from slow import count_correct

from training.evaluation import evaluate
from training.method import Method


class Fixed:
    """A loader of 300 images in batches of 128, 128 and 44."""

    device = torch.device("cpu")

    def __init__(self):
        torch.manual_seed(0)
        self.logits, self.labels = torch.randn(300, 4, 10), torch.randint(10, (300,))

    def __iter__(self):
        return zip(self.logits.split(128), self.labels.split(128), strict=True)


class Given(Method):
    """A method whose logits are its images."""

    model = torch.nn.Identity()
    outputs = dict.fromkeys(["stu0", "stu1", "stu_", ""], "")

    def predict(self, images):
        # In another order than ``outputs``: names decide.
        named = {name: images[:, r] for r, name in enumerate(self.outputs)}
        return dict(reversed(named.items())), {"extra": images[:, 0]}


def test_evaluation_weighs_images_not_batches():
    loader = Fixed()
    loader.logits[-1, :, :] = 0
    loader.logits[-44:, 0] = 10 * torch.nn.functional.one_hot(loader.labels[-44:], 10)  # the short batch is all correct
    found = evaluate(Given(), loader)
    for r, output in enumerate(Given.outputs):
        z = loader.logits[:, r]
        for k in (1, 5):
            exact = 100 * count_correct(z.tolist(), loader.labels.tolist(), k) / 300
            assert found[f"{output}test_accTop{k}"] == pytest.approx(exact, rel=1e-14)
        cross_entropy = torch.nn.functional.cross_entropy(z.double(), loader.labels).item()
        assert found[f"{output}test_loss"] == pytest.approx(cross_entropy, rel=1e-5)
    for k in (1, 5):
        assert found[f"mean_test_accTop{k}"] == (found[f"stu0test_accTop{k}"] + found[f"stu1test_accTop{k}"]) / 2
    assert found["mean_test_accTop1"] != found["mean_test_accTop5"]
    p = torch.softmax(loader.logits.double(), -1)
    assert found["dist"] == pytest.approx((p[:, 0] - p[:, 1]).norm(dim=-1).mean().item(), rel=1e-5)
    assert found["extra"] == pytest.approx(loader.logits[:, 0].double().mean(0).tolist(), rel=1e-5)


def test_outputs_that_the_method_does_not_name():
    class Other(Given):
        def predict(self, images):
            return {"stu0": images[:, 0], "stu1": images[:, 1]}, {}

    with pytest.raises(ValueError, match=r"returns the outputs \['stu0', 'stu1'\], but its class names"):
        evaluate(Other(), Fixed())
