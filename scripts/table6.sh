#!/bin/sh
# Table 6: ResNet-32 with a teacher, on CIFAR-10 and CIFAR-100. The teacher is the ResNet-110 of the same seed.
# Variables and flags: see runs.sh.
. "$(dirname "$0")/runs.sh"
DATASETS=${DATASETS:-CIFAR10 CIFAR100} MODELS=${MODELS:-resnet32}
lines=$(runs ${METHODS:-KD OKDDip OKDDip+KD})
execute "$lines"
