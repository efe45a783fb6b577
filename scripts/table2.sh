#!/bin/sh
# Table 2: CIFAR-100, five networks, seven methods. Variables and flags: see runs.sh.
. "$(dirname "$0")/runs.sh"
DATASETS=${DATASETS:-CIFAR100} MODELS=${MODELS:-densenetd40k12 resnet32 vgg16 resnet110 wide_resnet20_8}
lines=$(runs ${METHODS:-baseline Ind DML CL-ILR ONE OKDDip-N OKDDip})
execute "$lines"
