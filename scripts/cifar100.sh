#!/bin/sh
# The pilot of the CIFAR-100 study (results/cifar100/pilot): it decides how many images and epochs the study has. The
# data are the images of DATA_DIR: train/<class>/* and test/<class>/*. resnet20, learning rate 0.1, divided by 10 at a
# half and three quarters of the training; the ramp-up takes a quarter. The networks compute in half precision, which
# is faster on CPUs with bfloat16.
#
#   SIZES="10000x60 2500x150"     training images x epochs: sizes of about equal cost
#
#   DATA_DIR=path/to/images sh scripts/cifar100.sh
#   python report.py runs/cifar100
#
# METHODS, SEEDS, GPUS, DRY_RUN and PYTHON: see runs.sh.
SAVE_DIR=${SAVE_DIR:-./runs/cifar100} SEEDS=${SEEDS:-0 1}
. "$(dirname "$0")/runs.sh"
DATASETS=folder MODELS=resnet20 save_dir=$SAVE_DIR lines=
for size in ${SIZES:-10000x60 2500x150}; do
    images=${size%x*} EPOCHS=${size#*x}
    LENGTH=$(awk "BEGIN { print $EPOCHS / 4 }") recipe=" --train_size $images --amp bf16"  # 150 / 4 = 37.5
    SAVE_DIR=$save_dir/${images}_images_${EPOCHS}_epochs
    more=$(runs ${METHODS:-OKDDip baseline Ind}) || exit
    lines="$lines$more
"
done
execute "${lines%?}"
