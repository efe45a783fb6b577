#!/bin/sh
# Figure 3: groups of 3 to 8 students (BRANCHES), ResNet-32 on CIFAR-100. The groups of 4 are runs of Table 2.
# Variables and flags: see runs.sh.
. "$(dirname "$0")/runs.sh"
DATASETS=${DATASETS:-CIFAR100} MODELS=${MODELS:-resnet32}
lines=$(for branches in ${BRANCHES:-3 4 5 6 7 8}; do runs ${METHODS:-OKDDip ONE CL-ILR}; done)
execute "$lines"
