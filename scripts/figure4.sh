#!/bin/sh
# Figure 4: diversity over the epochs, WRN-20-8; on CIFAR-100, where these are Table 2's runs (the paper's figure could
# not be read). runs.sh says what the environment may change.
. "$(dirname "$0")/runs.sh"
DATASETS=${DATASETS:-CIFAR100} MODELS=${MODELS:-wide_resnet20_8}
execute "$(runs OKDDip CL-ILR ONE Ind)"
