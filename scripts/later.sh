#!/bin/sh
# The table of a later paper, PCL (AAAI 2021): CIFAR-10 and CIFAR-100, five networks, groups of three students, the
# methods that it compares, and OKDPH. Their baseline is made by table1.sh and table2.sh. All have the same recipe, so
# no branch of a VGG has dropout. Variables and flags: see runs.sh.
. "$(dirname "$0")/runs.sh"
DATASETS=${DATASETS:-CIFAR10 CIFAR100} MODELS=${MODELS:-resnet32 resnet110 vgg16 densenetd40k12 wide_resnet20_8}
branches=3 vgg_dropout=0
lines=$(runs ${METHODS:-DML CL-ILR ONE FFL OKDDip KDCL PCL OKDPH})
execute "$lines"
