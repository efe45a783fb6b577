import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors are small. While other programs run, threads that wait for each other are several times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
