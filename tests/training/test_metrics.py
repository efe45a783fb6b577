import pytest
import torch
from processes import be_one_of, group
from slow import count_correct

from training.method import Method
from training.metrics import RunningSums, diversity, evaluate, topk_correct

CPU = torch.device("cpu")


def test_nan_counts_as_wrong():
    for C in (10, 4):
        assert not topk_correct(torch.full((4, 1, C), float("nan")), torch.tensor([0, 1, 2, 3])).any()


@pytest.mark.parametrize("m", [2, 3, 8])
def test_diversity(m):
    torch.manual_seed(0)
    p = torch.softmax(torch.randn(6, m, 10, dtype=torch.float64), -1)
    total = 0.0
    for image in p.tolist():
        pairs = [sum((x - y) ** 2 for x, y in zip(image[i], image[j], strict=True)) ** 0.5
                 for i in range(m) for j in range(i)]
        total += sum(pairs) / len(pairs)
    assert diversity(p).item() == pytest.approx(total, rel=1e-12)


def test_sums_count_single_images_among_many():
    """In float32, 2^24 + 1 is 2^24."""
    sums = RunningSums(CPU)
    sums.add(2**24, correct=torch.tensor([2.0**24]))
    sums.add(1, correct=torch.tensor([1.0]))
    assert sums.totals()[1]["correct"].item() == 2**24 + 1 and sums.means() == {"correct": [1.0]}


def test_only_the_first_process_continues_with_the_sums(monkeypatch):
    """They are those of all processes: the others start from 0, and count the same steps. "hits": in older files.

    The seconds before and after a stop count, but not those between.
    """
    state = {"images": 8, "steps": 2, "seconds": 1000.0, "sums": {"hits": torch.tensor([3.0, 4.0])}}
    for environment, images, counted in zip(group(2), (8, 0), ([3, 4], [0, 0]), strict=True):
        be_one_of(monkeypatch, environment)
        sums = RunningSums(CPU)
        sums.load_state_dict(state)
        assert (sums.images, sums.steps, sums.sums["correct"].tolist()) == (images, 2, counted)
        assert 1000 < sums.seconds < 1060


# --- evaluation


class Fixed:
    """A loader of 300 images in batches of 128, 128 and 44."""

    device = CPU

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
    p = torch.softmax(loader.logits.double(), -1)
    assert found["dist"] == pytest.approx((p[:, 0] - p[:, 1]).norm(dim=-1).mean().item(), rel=1e-5)
    assert found["extra"] == pytest.approx(loader.logits[:, 0].double().mean(0).tolist(), rel=1e-5)


def test_outputs_that_the_method_does_not_name():
    class Other(Given):
        def predict(self, images):
            return {"stu0": images[:, 0], "stu1": images[:, 1]}, {}

    with pytest.raises(ValueError, match=r"returns the outputs \['stu0', 'stu1'\], but its class names"):
        evaluate(Other(), Fixed())
