#!/bin/sh
# Table 1: CIFAR-10, five networks, seven methods. runs.sh says what the environment may change.
DATASETS=${DATASETS:-CIFAR10}
. "$(dirname "$0")/table2.sh"
