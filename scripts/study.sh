#!/bin/sh
# The small study of results/: eight methods, three seeds, resnet8, 8 epochs. The learning rate is 0.1, divided by 10
# after epochs 4 and 6. The ramp-up takes 2 epochs. The data are all images of DATA_DIR: train/<class>/* and
# test/<class>/*. The teacher is a resnet20, trained in the same way.
#
#   DATA_DIR=path/to/images sh scripts/study.sh
#   python report.py runs/study
#
# SEEDS and METHODS choose a part of the study, or other methods: METHODS="KD OKDDip:--aggregation:others" (runs.sh).
# DATA_DIR, SAVE_DIR, GPUS, DRY_RUN and PYTHON: see runs.sh.
SAVE_DIR=${SAVE_DIR:-./runs/study}
. "$(dirname "$0")/runs.sh"
DATASETS=folder MODELS=resnet8 EPOCHS=8 LENGTH=2 T_MODEL=resnet20 teacher_seed=0 recipe=" --schedule 4 6"
lines=$(runs ${METHODS:-baseline Ind ONE CL-ILR OKDDip DML OKDDip-N KD}) || exit
case $lines in *" --T_model "*)
    lines="$(SEEDS=0 MODELS=resnet20 && runs baseline)
$lines" ;;
esac
execute "$lines"
