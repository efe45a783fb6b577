#!/bin/sh
# Figure 4: diversity in each epoch, WRN-20-8. The data set in the paper's figure could not be read. This script uses
# CIFAR-100, so all are runs of Table 2. Variables and flags: see runs.sh.
. "$(dirname "$0")/runs.sh"
DATASETS=${DATASETS:-CIFAR100} MODELS=${MODELS:-wide_resnet20_8}
lines=$(runs ${METHODS:-OKDDip CL-ILR ONE Ind})
execute "$lines"
