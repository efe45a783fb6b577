#!/bin/sh
# The study of results/: resnet20, 5,000 training images, 40 epochs. The learning rate is 0.1, divided by 10 after
# epochs 20 and 30. The ramp-up takes 10 epochs. The data are the images of DATA_DIR: train/<class>/* and
# test/<class>/*. Five seeds of eight methods, three seeds of the others. The teacher is a resnet56 with the same
# training, seed 0.
#
#   DATA_DIR=path/to/images sh scripts/study.sh
#   python report.py runs/study
#
# SEEDS and METHODS choose a part of the study, or other methods (see runs.sh, also for DATA_DIR, SAVE_DIR, GPUS, DRY_RUN
# and PYTHON; EPOCHS, MODELS, DATASETS and LENGTH have no effect):
#
#   METHODS="KD OKDDip:--aggregation:random" sh scripts/study.sh
#   METHODS=DML:--models:resnet20:vgg16 sh scripts/study.sh    # different networks in a group
SAVE_DIR=${SAVE_DIR:-./runs/study} seeds=${SEEDS:-}
. "$(dirname "$0")/runs.sh"
DATASETS=folder MODELS=resnet20 EPOCHS=40 LENGTH=10 T_MODEL=resnet56 teacher_seed=0
recipe=" --train_size 5000 --schedule 20 30"
with_five_seeds="baseline Ind CL-ILR ONE OKDDip OKDDip:--aggregation:mean OKDDip:--aggregation:others"
with_five_seeds="$with_five_seeds OKDDip:--detach_targets" five='' three=''
others="KD DML DML:--detach_targets OKDDip-N OKDDip-N:--aggregation:others FFL KDCL KDCL:--target:minlogit"
for method in ${METHODS:-$with_five_seeds $others}; do
    case " $with_five_seeds " in
        *" $method "*) five="$five $method" ;;
        *) three="$three $method" ;;
    esac
done
lines=$(SEEDS=${seeds:-0 1 2 3 4} && runs $five && SEEDS=${seeds:-0 1 2} && runs $three) || exit
execute "$lines"
