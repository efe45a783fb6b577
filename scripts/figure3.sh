#!/bin/sh
# Figure 3: groups of 3 to 8 (BRANCHES), ResNet-32 on CIFAR-100; those of 4 are Table 2's. runs.sh says what the
# environment may change.
. "$(dirname "$0")/runs.sh"
DATASETS=${DATASETS:-CIFAR100} MODELS=${MODELS:-resnet32}
execute "$(for branches in ${BRANCHES:-3 4 5 6 7 8}; do runs OKDDip ONE CL-ILR; done)"
