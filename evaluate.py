"""Use a finished run: measure it, export its deployed network, classify images.

    python evaluate.py CIFAR10/OKDDip/resnet32                           # metrics, as a table or with --json
    python evaluate.py CIFAR10/OKDDip/resnet32 --export leader.onnx      # or .pth, .safetensors, .pt2
    python evaluate.py leader.onnx --images a.png b.jpg

RUN is a run's folder (its best.pth), a checkpoint of a run, a checkpoint of the authors' code, or an exported file. The
metrics have the same names as in the run's metrics.jsonl and, on the same machine, the same values. The
column NLL is the metric ``test_loss``, the cross-entropy at T = 1. Each output has two more metrics:

    test_ece           expected calibration error, 0..1
    test_accPerClass   top-1 accuracy in % of each class, null for a class without images
"""

from argparse import Namespace
from pathlib import Path

import methods
import utils
from runtime.errors import UserError
from runtime.files import as_json
from runtime.rank import world_size


def parse_args(argv: list[str] | None) -> Namespace:
    """The flags. Wrong flags end the program with one line and exit code 2."""
    p = utils.Parser(__doc__, "RUN")
    p.main.add_argument("file", metavar="RUN", help="run folder (its best.pth), checkpoint, exported file")
    g = p.main.add_mutually_exclusive_group()
    g.add_argument("--export", type=Path, metavar="FILE",
                   help="write the deployed network; FILE ends in .pth, .safetensors, .onnx, .pt2")
    g.add_argument("--images", nargs="+", metavar="IMAGE",
                   help="classify these image files, and those in these folders")
    p.main.add_argument("--data_dir", metavar="DIR", help="data folder (default: as in the run, else ./Data)")
    p.main.add_argument("--json", action="store_true", help="print JSON instead of text")
    g = p.add_argument_group("details")
    g.add_argument("--branch", type=utils.number(int, 0), metavar="I",
                   help="student I of a group, from 0 (default: the leader; without one, --images uses the ensemble, "
                        "and --export needs this flag)")
    g.add_argument("--top", type=utils.COUNT, default=5, help="classes that --images prints")
    g.add_argument("--overwrite", action="store_true", help="let --export replace a file")
    g.add_argument("--dataset",
                   help=f"{utils.DATASETS} (default: as in the run; authors' checkpoint: by its classes; exported file "
                        "with --data_dir: imagenet if made for 224x224, else folder)")
    g.add_argument("--decoder", choices=utils.DECODERS, help="JPEG decoder (default: as in the run, else pil)")
    g = p.add_argument_group("checkpoints of the authors' code; --model also for networks from Python files")
    g.add_argument("--model", help=f"{utils.NETWORKS} (default: resnet32); or PATH/FILE.py:NAME, the file to import if "
                                   "the one of the training has moved or changed, or if RUN was exported")
    g.add_argument("--method", choices=list(methods.FAMILIES), metavar="NAME",
                   help=f"{', '.join(methods.FAMILIES)} (default: recognised by parameter names)")
    g = p.add_argument_group("device and speed")
    g.add_argument("--batch_size", type=utils.COUNT,
                   help="images in a batch (default: as in the run, else 128); at least 1024 on a GPU, 256 if large")
    g.add_argument("--num_workers", type=utils.COUNT_OR_0,
                   help="threads or processes that read images (default: as in the run, else 8)")
    g.add_argument("--device", help="cuda, cuda:1, cpu (default: the GPU, else the CPU; --export, .onnx and .pt2: "
                                    "always the CPU)")
    g.add_argument("--gpu_id", default=0, type=utils.gpu_number, help="number of the GPU (default: 0)")
    args = p.parse_args(argv)
    p.refuse("decoder", args.decoder and (args.export or args.images),
             "it is for measuring, not for --export or --images")
    return args


def main(argv: list[str] | None = None) -> None:
    """Measure, export or classify, and print. UserError if the file, the data or a flag is wrong.

    If some images cannot be read, the others are printed before the error.
    """
    args = parse_args(argv)
    if world_size() > 1:
        raise UserError("evaluate.py works in one process: start it without torchrun")
    # Here, because --help and wrong flags need no PyTorch.
    import data_loader
    from deployment import classifying, exporting, measuring
    from deployment.reading import read
    from loading.images import DamagedFiles
    from runtime.device import pick_device

    if args.dataset not in (None, *data_loader.DATASETS):
        raise UserError(f"argument --dataset: unknown name {args.dataset!r}; known are "
                        f"{', '.join(data_loader.DATASETS)}")
    if args.export:
        exporting.check_target(args.export, args.overwrite)
    saved = read(args.file, model=args.model, method=args.method, dataset=args.dataset, data_dir=args.data_dir,
                 batch_size=args.batch_size, num_workers=args.num_workers, decoder=args.decoder)
    if args.export:
        result, text = exporting.export_model(saved, args.export, args.branch), exporting.as_text
    else:  # .onnx and .pt2 files always run on the CPU
        device = pick_device("cpu" if saved.external else args.device, args.gpu_id)
        if args.images:
            result, text = classifying.classify(saved, args.images, device, args.branch, args.top), classifying.as_text
        else:
            result, text = measuring.measure(saved, device, args.branch), measuring.as_text
    utils.write_result(as_json(result).decode() if args.json else text(result) + "\n")
    if result.get("unreadable"):
        raise DamagedFiles(result["unreadable"])


if __name__ == "__main__":
    utils.command(main)
