#!/bin/sh
# The small study of results/: eight methods, three seeds, resnet8, 8 epochs (learning rate 0.1, divided by 10 after
# epochs 4 and 6; ramp-up over 2) on all images of DATA_DIR, which holds train/<class>/* and test/<class>/*; KD's teacher
# is one resnet20 of the same training.
#
#   DATA_DIR=path/to/images sh scripts/study.sh
#   python report.py runs/study
#
# METHODS and SEEDS choose a part of it; DATA_DIR, SAVE_DIR, GPUS, DRY_RUN and PYTHON are those of runs.sh.
SAVE_DIR=${SAVE_DIR:-./runs/study}
. "$(dirname "$0")/runs.sh"
DATASETS=folder MODELS=resnet8 EPOCHS=8 LENGTH=2 T_MODEL=resnet20 teacher_seed=0 recipe=" --schedule 4 6"
METHODS=${METHODS:-baseline Ind ONE CL-ILR OKDDip DML OKDDip-N KD}
lines=$(runs $METHODS)
case "${lines:+ $METHODS }" in *" KD "*)
    lines="$(SEEDS=0 MODELS=resnet20 && runs baseline)
$lines" ;;
esac
execute "$lines"
