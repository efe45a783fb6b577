#!/bin/sh
# Table 4: the ensemble of four branches, CIFAR-100, three networks. CL-ILR, ONE and Ind are Table 2's runs, of which
# report.py takes the ensemble's figures; OKDDip has no leader here. runs.sh says what the environment may change.
. "$(dirname "$0")/runs.sh"
DATASETS=${DATASETS:-CIFAR100} MODELS=${MODELS:-vgg16 resnet32 resnet110}
execute "$(runs CL-ILR ONE OKDDip-no_leader Ind)"
