#!/bin/sh
# The small study of results/: eight methods, three seeds, resnet8, 8 epochs (learning rate 0.1, a tenth from epochs 4
# and 6 on; ramp-up over 2) on all images of DATA_DIR, which holds train/<class>/* and test/<class>/*; KD's teacher is
# one resnet20 of the same training.
#
#   DATA_DIR=path/to/images sh scripts/study.sh
#
# METHODS and SEEDS choose a part of it; runs.sh says what else the environment may change. What a run leaves is in
# SAVE_DIR; the records of finished runs, without weights, are copied to results/study.
DATASETS=folder MODELS=resnet8 EPOCHS=8 LENGTH=2 T_MODEL=resnet20 T_SEED=0
recipe=" --schedule 4 6" SAVE_DIR=${SAVE_DIR:-./runs/study}
METHODS=${METHODS:-baseline Ind ONE CL-ILR OKDDip DML OKDDip-N KD}
. "$(dirname "$0")/runs.sh"

lines=$(runs $METHODS)
case " $METHODS " in *" KD "*)
    lines="$(SEEDS=0 MODELS=resnet20 && runs baseline)
$lines" ;;
esac
(execute "$lines") && code=0 || code=$?
[ -n "${DRY_RUN:-}" ] && exit
find "$SAVE_DIR/folder" -name summary.json | while read -r summary; do
    run=$(dirname "$summary")
    target=results/study/${run#"$SAVE_DIR/folder/"}
    mkdir -p "$target"
    cp "$run/parameters.json" "$run/metrics.jsonl" "$summary" "$target/"
done
exit $code
