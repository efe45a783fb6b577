#!/bin/sh
# Table 4: the ensemble of four branches, CIFAR-100, three networks. CL-ILR, ONE and Ind are runs of Table 2; report.py
# shows their ensembles. OKDDip has no leader here. Variables and flags: see runs.sh.
. "$(dirname "$0")/runs.sh"
DATASETS=${DATASETS:-CIFAR100} MODELS=${MODELS:-vgg16 resnet32 resnet110}
lines=$(runs ${METHODS:-CL-ILR ONE OKDDip:--no_leader Ind})
execute "$lines"
