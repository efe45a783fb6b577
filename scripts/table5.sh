#!/bin/sh
# Table 5: ResNet-32 on CIFAR-100, with other weights instead of attention, and with one level of distillation instead
# of two. Variables and flags: see runs.sh.
. "$(dirname "$0")/runs.sh"
DATASETS=${DATASETS:-CIFAR100} MODELS=${MODELS:-resnet32}
lines=$(runs ${METHODS:-OKDDip:--aggregation:random OKDDip:--aggregation:entropy OKDDip:--aggregation:mean \
    OKDDip:--aggregation:symmetric OKDDip:--no_leader OKDDip})
execute "$lines"
