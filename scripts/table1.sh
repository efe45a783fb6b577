#!/bin/sh
# Table 1: CIFAR-10, five networks, seven methods. Variables and flags: see runs.sh.
DATASETS=${DATASETS:-CIFAR10}
. "$(dirname "$0")/table2.sh"
