#!/bin/sh
# Table 6: ResNet-32 with a teacher, the ResNet-110 of the same seed, on CIFAR-10 and CIFAR-100. runs.sh says what the
# environment may change.
. "$(dirname "$0")/runs.sh"
DATASETS=${DATASETS:-CIFAR10 CIFAR100} MODELS=${MODELS:-resnet32}
execute "$(MODELS=$T_MODEL && runs baseline)
$(runs KD OKDDip OKDDip+KD)"
