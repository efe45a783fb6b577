#!/bin/sh
# Makes .venv, installs the requirements, and trains OKDDip on images that come with scikit-learn. The training takes
# about two minutes on two CPU cores. Each start trains anew.
set -eu
REQUIREMENTS=requirements.txt
. "$(dirname "$0")/setup.sh"
.venv/bin/python train_GL.py --model resnet14 --dataset DIGITS --num_epochs 14 --length 6 \
    --save_dir runs/demo --overwrite "$@"
cat <<'END'

That was OKDDip: three peers learn from each other, and a group leader learns from all of them. You would deploy the
leader. Where to look next:
  runs/demo/DIGITS/OKDDip/resnet14/   the run: best.pth, metrics.jsonl, train.log
  .venv/bin/tensorboard --logdir runs/demo
  README.md                           the commands for the paper's CIFAR-10 results
END
