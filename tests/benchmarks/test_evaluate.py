import torch

from benchmarks import evaluate

CPU = torch.device("cpu")


def test_plain_evaluation_has_every_metric():
    args = evaluate.parse_args(["--model", "resnet8", "--batch_size", "4"])
    method = evaluate.build(args, CPU)
    outputs = ["stu_", "stu0", "stu1", "stu2", ""]
    assert list(method.outputs) == outputs
    batches = [(torch.randn(4, 3, 32, 32), torch.arange(4))]
    found = evaluate.plain(method.model, batches, outputs, torch.autocast("cpu", enabled=False))
    metrics = {f"{output}test_{name}" for output in outputs for name in ("accTop1", "accTop5", "loss")}
    assert found.keys() == {"dist"} | metrics
