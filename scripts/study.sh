#!/bin/sh
# The small study of results/: eight methods, three seeds, resnet8, 8 epochs (learning rate 0.1, a tenth from epochs 4
# and 6 on; ramp-up over 2) on all images of DATA_DIR, which holds train/<class>/* and test/<class>/*; KD's teacher is
# one resnet20 of the same training.
#
#   DATA_DIR=path/to/images sh scripts/study.sh
#
# METHODS and SEEDS choose a part of it; DATA_DIR, GPUS, DRY_RUN and PYTHON are those of runs.sh. What a run leaves is in
# SAVE_DIR; the records of finished runs, without weights, are copied to results/study.
SAVE_DIR=${SAVE_DIR:-./runs/study}
. "$(dirname "$0")/runs.sh"
DATASETS=folder MODELS=resnet8 EPOCHS=8 LENGTH=2 T_MODEL=resnet20 teacher_seed=0 recipe=" --schedule 4 6"
METHODS=${METHODS:-baseline Ind ONE CL-ILR OKDDip DML OKDDip-N KD}

lines=$(runs $METHODS)
case " $METHODS " in *" KD "*)
    lines="$(SEEDS=0 MODELS=resnet20 && runs baseline)
$lines" ;;
esac
(execute "$lines") &
runner=$!
trap 'kill -TERM $runner' INT TERM HUP  # and then wait for it, to copy what is finished
while :; do
    wait $runner && code=0 || code=$?
    kill -0 $runner 2> /dev/null || break
done
[ -n "${DRY_RUN:-}" ] && exit
[ -d "$SAVE_DIR/folder" ] || exit $code
find "$SAVE_DIR/folder" -name summary.json | while read -r summary; do
    run=$(dirname "$summary")
    target=results/study/${run#"$SAVE_DIR/folder/"}
    mkdir -p "$target"
    cp "$run/parameters.json" "$run/metrics.jsonl" "$summary" "$target/"
done
exit $code
