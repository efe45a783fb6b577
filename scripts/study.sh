#!/bin/sh
# The small study of results/: eight methods, three seeds, resnet8, 8 epochs (learning rate 0.1, a tenth from epochs 4
# and 6 on; ramp-up over 2) on all images of DATA_DIR, which holds train/<class>/* and test/<class>/*.
#
#   DATA_DIR=path/to/images sh scripts/study.sh
#
# Finished runs are passed over and interrupted ones continued, so it is simply started again. METHODS and SEEDS from
# the environment choose a part of it; DRY_RUN=1 prints the commands. What a run leaves is in SAVE_DIR; its records,
# without weights, are copied to results/study.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python}
DATA_DIR=${DATA_DIR:-./Data} SAVE_DIR=${SAVE_DIR:-./runs/study}
METHODS=${METHODS:-baseline KD Ind ONE CL-ILR DML OKDDip OKDDip-N} SEEDS=${SEEDS:-0 1 2}

# run FOLDER SCRIPT FLAG...: one training, and a copy of its records
run() {
    folder=$1
    shift
    set -- "$@" --dataset folder --data_dir "$DATA_DIR" --save_dir "$SAVE_DIR" --num_epochs 8 --schedule 4 6 \
        --seed "$seed" --version "seed$seed" --resume auto
    if [ -n "${DRY_RUN:-}" ]; then
        echo python "$@"
        return
    fi
    "$PYTHON" "$@"
    mkdir -p "results/study/$folder"
    for file in parameters.json metrics.jsonl summary.json; do
        cp "$SAVE_DIR/folder/$folder/$file" "results/study/$folder/"
    done
}

for seed in $SEEDS; do
    for method in $METHODS; do
        name=resnet8_seed$seed
        case $method in
            baseline) run "$name" train.py --model resnet8 ;;
            KD)
                (seed=0 && run resnet20_seed0 train.py --model resnet20)
                run "KD/$name" train_kd.py --model resnet8 --T_model resnet20 \
                    --T_model_path "$SAVE_DIR/folder/resnet20_seed0"
                ;;
            Ind) run "Ind/$name" train_one.py --model resnet8 --ind ;;
            ONE) run "ONE/$name" train_one.py --model resnet8 --length 2 ;;
            CL-ILR) run "CL-ILR/$name" train_one.py --model resnet8 --avg --bpscale --length 2 ;;
            DML) run "DML/$name" train_DML.py --model resnet8 ;;
            OKDDip) run "OKDDip/$name" train_GL.py --model resnet8 --length 2 ;;
            OKDDip-N) run "OKDDip-N/$name" train_GL.py --model resnet8 --MulStu --length 2 ;;
            *)
                echo "error: unknown method $method" >&2
                exit 2
                ;;
        esac
    done
done
