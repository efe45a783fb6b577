import json

import pytest
import torch
from processes import group
from slow import count_correct

from training.metrics import RunningSums, diversity, name_metrics, topk_correct


def correct(logits, labels):
    return topk_correct(logits, labels).sum(0).tolist()


@pytest.mark.parametrize("classes", [3, 10, 100])
def test_topk_correct(classes):
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 4, classes), torch.randint(classes, (50,))
    found = correct(logits, labels)
    for r in range(4):
        assert found[r] == [count_correct(logits[:, r].tolist(), labels.tolist(), k) for k in (1, 5)]
        assert found[r][0] == (logits[:, r].argmax(-1) == labels).sum()


def test_of_equal_scores_the_lower_class_is_higher():
    """As in argmax and in a stable sort: a network with constant outputs is right by chance, not always."""
    labels = torch.arange(10)
    assert correct(torch.zeros(10, 1, 10), labels) == [[1, 5]]
    torch.manual_seed(0)
    z, labels = torch.randint(4, (200, 1, 10)).bfloat16(), torch.randint(10, (200,))
    order = z.squeeze(1).float().sort(dim=-1, descending=True, stable=True).indices
    assert correct(z, labels) == [[(order[:, :k] == labels.unsqueeze(1)).sum().item() for k in (1, 5)]]


def test_nan_counts_as_wrong():
    assert correct(torch.full((4, 1, 10), float("nan")), torch.tensor([0, 1, 2, 3])) == [[0, 0]]


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


def test_metrics_are_json():
    means = {"hits": [[0.5, 1.0], [0.25, 0.75]], "terms": [1.0, 1.0, 0.0]}
    named = name_metrics(means, ["stu0", ""], "train")
    assert json.loads(json.dumps(named)) == {
        "stu0train_accTop1": 50, "stu0train_accTop5": 100, "train_accTop1": 25, "train_accTop5": 75,
        "mean_train_accTop1": 50, "mean_train_accTop5": 100}


def test_running_sums_continue_from_a_checkpoint():
    """Means over all images, however many steps came before and after; the seconds of both count."""
    whole, first, second = (RunningSums(torch.device("cpu")) for _ in range(3))
    batches = [(n, torch.tensor([1.5 * n, n / 3])) for n in (8, 8, 5)]
    for n, value in batches:
        whole.add(n, terms=value)
    first.add(8, terms=batches[0][1])
    state = first.state_dict()
    second.load_state_dict(state)
    for n, value in batches[1:]:
        second.add(n, terms=value)
    assert second.means() == whole.means() and second.images == 21 and second.steps == 3
    assert second.seconds >= state["seconds"] > 0
    assert second.seconds - state["seconds"] < 60 and second.seconds < second.earlier_seconds + 60


def test_a_new_epoch_starts_at_0():
    sums = RunningSums(torch.device("cpu"))
    assert sums.state_dict()["images"] == sums.state_dict()["steps"] == 0 and sums.state_dict()["sums"] == {}
    assert sums.earlier_seconds == 0


def test_sums_count_single_images_among_many():
    """In float32, 2^24 + 1 is 2^24."""
    sums = RunningSums(torch.device("cpu"))
    sums.add(2**24, hits=torch.tensor([2.0**24]))
    sums.add(1, hits=torch.tensor([1.0]))
    assert sums.totals()[1]["hits"].item() == 2**24 + 1 and sums.means() == {"hits": [1.0]}


def test_only_the_first_process_continues_with_the_sums(monkeypatch):
    """They are those of all processes: the others start from 0, and count the same steps."""
    state = {"images": 8, "steps": 2, "seconds": 1.0, "sums": {"terms": torch.tensor([3.0, 4.0])}}
    for rank, images, terms in (("0", 8, [3, 4]), ("1", 0, [0, 0])):
        for name, value in (group(2)[0] | {"RANK": rank}).items():
            monkeypatch.setenv(name, value)
        sums = RunningSums(torch.device("cpu"))
        sums.load_state_dict(state)
        assert (sums.images, sums.steps, sums.sums["terms"].tolist()) == (images, 2, terms)
