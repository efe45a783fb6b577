#!/bin/sh
# Makes .venv, installs what is needed, and trains OKDDip for about two minutes on two CPU cores, on images that come
# with scikit-learn. Run it again, and it trains again.
set -eu
REQUIREMENTS=requirements.txt
. "$(dirname "$0")/setup.sh"
.venv/bin/python train_GL.py --model resnet14 --dataset DIGITS --num_epochs 14 --length 6 \
    --save_dir runs/demo --overwrite "$@"
cat <<'END'

That was OKDDip: three peers that learn from each other, and a group leader that learns from all of them. The leader is
what you would deploy. Where to look next:
  runs/demo/DIGITS/OKDDip/resnet14/   the run: best.pth, metrics.jsonl, train.log
  .venv/bin/tensorboard --logdir runs/demo
  README.md                           the commands behind the paper's CIFAR-10 results
END
