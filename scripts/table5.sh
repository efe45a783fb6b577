#!/bin/sh
# Table 5: ResNet-32 on CIFAR-100, other weights in the attention's place, and one level of distillation in place of
# two. runs.sh says what the environment may change.
. "$(dirname "$0")/runs.sh"
DATASETS=${DATASETS:-CIFAR100} MODELS=${MODELS:-resnet32}
execute "$(runs OKDDip-random OKDDip-entropy OKDDip-mean OKDDip-symmetric OKDDip-no_leader OKDDip)"
