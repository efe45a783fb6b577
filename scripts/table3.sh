#!/bin/sh
# Table 3: ImageNet, ResNet-34, six methods. The paper's own recipe could not be read. This is the usual one.
# Variables and flags: see runs.sh.
. "$(dirname "$0")/runs.sh"
DATASETS=${DATASETS:-imagenet} MODELS=${MODELS:-resnet34}
recipe=" --batch_size 256 --wd 1e-4"
[ -n "${EPOCHS:-}" ] || recipe="$recipe --schedule 30 60"
EPOCHS=${EPOCHS:-90}
lines=$(runs ${METHODS:-baseline DML CL-ILR ONE OKDDip-N OKDDip})
execute "$lines"
