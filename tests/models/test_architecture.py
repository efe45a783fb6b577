import pytest
import torch

from models.architecture import BatchNorm, count_batches


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 2)])
def test_batch_norm_is_pytorchs(shape):
    """In training and in evaluation: outputs, running statistics and, after ``count_batches``, the counter."""
    torch.manual_seed(0)
    theirs = torch.nn.BatchNorm1d(5) if len(shape) == 2 else torch.nn.BatchNorm2d(5)
    ours = BatchNorm(5)
    for training in (True, True, False, True, False):
        x = 2 * torch.randn(shape) + 3
        ours.train(training)
        theirs.train(training)
        assert ours(x).equal(theirs(x))
    count_batches(ours, 3)
    assert all(value.equal(ours.state_dict()[name]) for name, value in theirs.state_dict().items())


def test_evaluation_normalises_by_the_running_statistics():
    """(x - running mean) / sqrt(running variance + eps), one number at a time; the statistics stay as they are."""
    norm = BatchNorm(2).eval()
    norm.running_mean[:], norm.running_var[:] = torch.tensor([1.0, -2.0]), torch.tensor([4.0, 0.25])
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    x = torch.tensor([[[[3.0]], [[5.0]]], [[[7.0]], [[-2.0]]]])
    expected = [[(3 - 1) / (4 + 1e-5) ** 0.5, (5 + 2) / (0.25 + 1e-5) ** 0.5], [(7 - 1) / (4 + 1e-5) ** 0.5, 0.0]]
    assert norm(x).flatten(1).tolist() == [pytest.approx(row, rel=1e-6) for row in expected]
    assert all(value.equal(before[name]) for name, value in norm.state_dict().items())
