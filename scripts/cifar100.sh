#!/bin/sh
# The CIFAR-100 study of results/cifar100: resnet20, 10,000 training images, 60 epochs, learning rate 0.1, divided by 10
# at a half and three quarters of the training; the ramp-up takes a quarter. The data are the images of DATA_DIR:
# train/<class>/* and test/<class>/*. Five seeds of five methods, three seeds of the others. The networks compute in
# bfloat16 (--amp bf16), which is faster on CPUs that have it.
#
#   DATA_DIR=path/to/images sh scripts/cifar100.sh
#   python report.py runs/cifar100
#
# SIZES: training images x epochs, 10000x60 by default. The pilot, which compares two sizes:
#
#   SIZES="10000x60 2500x150" METHODS="baseline Ind OKDDip" SEEDS="0 1" sh scripts/cifar100.sh
#
# METHODS, SEEDS, GPUS, DRY_RUN and PYTHON: see runs.sh. METHODS without SEEDS makes three seeds of each. EPOCHS, MODELS,
# DATASETS and LENGTH have no effect.
SAVE_DIR=${SAVE_DIR:-./runs/cifar100} seeds=${SEEDS:-}
. "$(dirname "$0")/runs.sh"
DATASETS=folder MODELS=resnet20 save_dir=$SAVE_DIR lines=
with_five_seeds="baseline Ind ONE CL-ILR OKDDip"
with_three_seeds="OKDDip:--aggregation:others OKDDip:--aggregation:mean FFL DML OKDDip-N KDCL PCL"
okdph=OKDPH:--omega:1:--beta:0.5:--gamma:1:--interval:5_batch  # its authors' setting for ResNet-32 on CIFAR-100
for size in ${SIZES:-10000x60}; do
    images=${size%x*} EPOCHS=${size#*x}
    LENGTH=$(awk "BEGIN { print $EPOCHS / 4 }") recipe=" --train_size $images --amp bf16"  # 150 / 4 = 37.5
    SAVE_DIR=$save_dir/${images}_images_${EPOCHS}_epochs
    if [ -n "${METHODS:-}" ]; then
        more=$(SEEDS=${seeds:-0 1 2} && runs $METHODS) || exit
    else
        more=$(SEEDS=${seeds:-0 1 2 3 4} && runs $with_five_seeds && SEEDS=${seeds:-0 1 2} &&
            runs $with_three_seeds $okdph) || exit
    fi
    lines="$lines$(SEEDS=${seeds:-0 1 2} && with_teachers "$more")
"
done
execute "${lines%?}"
