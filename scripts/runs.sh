# Sourced by table*.sh, figure*.sh and study.sh, which say what to train. From the environment:
#
#   SEEDS="0 1 2"          seeds of each cell             DATA_DIR=./Data        where the data is
#   EPOCHS=300             length of the trainings        SAVE_DIR=./runs/paper  where the runs are made; with EPOCHS,
#                                                                                ./runs/paper_<EPOCHS>_epochs
#   GPUS="0 1"             one run at a time on each      DRY_RUN=1              print the commands, run nothing
#   MODELS, DATASETS       other networks, other data     LENGTH=80              epochs of the ramp-up
#   T_MODEL=resnet110      the teacher                    PYTHON=python          what runs them
#
# Flags given to a script are passed on to every run. Finished runs are passed over and interrupted ones continued, so
# a script that was stopped is simply started again; runs that tables share are made once.
set -eu
CDPATH='' cd -- "$(dirname "$0")/.." > /dev/null  # where paths that are not absolute begin
SEEDS=${SEEDS:-0 1 2} DATA_DIR=${DATA_DIR:-./Data} T_MODEL=${T_MODEL:-resnet110}
# a folder of its own for each length: a short trial would be continued, at its low learning rate, by the full training
SAVE_DIR=${SAVE_DIR:-./runs/paper${EPOCHS:+_${EPOCHS}_epochs}}
[ "${DRY_RUN:-}" != 0 ] || DRY_RUN=
unset branches recipe teacher_seed

# quote WORD...: the words as part of a line that a shell reads back as the same words
quote() {
    for word; do
        case $word in
            '' | *[!A-Za-z0-9_./:=@%+,-]*) printf " '%s'" "$(printf %s "$word" | sed "s/'/'\\\\''/g")" ;;
            *) printf ' %s' "$word" ;;
        esac
    done
}
passed_on=$(quote "$@")

# runs METHOD...: a line for each run, a method under the name of its runs' folder
runs() {
    for seed in $SEEDS; do
        for dataset in $DATASETS; do
            for model in $MODELS; do
                for method; do
                    line
                done
            done
        done
    done
}

line() {
    ramp_up=${LENGTH:+ --length $LENGTH}
    teacher=$(quote --T_model "$T_MODEL" --T_model_path "$SAVE_DIR/$dataset/${T_MODEL}_seed${teacher_seed:-$seed}")
    case $method in
        baseline) script=train.py ;;
        KD) script="train_kd.py$teacher" ;;
        DML) script=train_DML.py ;;
        Ind) script="train_one.py --ind" ;;
        ONE) script="train_one.py$ramp_up" ;;
        CL-ILR) script="train_one.py --avg --bpscale$ramp_up" ;;
        OKDDip) script="train_GL.py$ramp_up" ;;
        OKDDip-N) script="train_GL.py --MulStu$ramp_up" ;;
        OKDDip-no_leader) script="train_GL.py --no_leader$ramp_up" ;;
        OKDDip+KD) script="train_GL.py$teacher$ramp_up" ;;
        OKDDip-random | OKDDip-entropy | OKDDip-mean | OKDDip-symmetric)
            script="train_GL.py --aggregation ${method#OKDDip-}$ramp_up"
            ;;
        *)
            echo "error: unknown method $method" >&2
            exit 2
            ;;
    esac
    case $method-$model in  # as in the authors' code, whose branches of a VGG have it built in
        baseline-* | KD-* | DML-* | OKDDip-N-*) ;;
        *-vgg*) script="$script --dropout 0.5" ;;
    esac
    [ "${branches:-4}" = 4 ] || script="$script --num_branches $branches"
    version=seed$seed
    [ "${branches:-4}" = 4 ] || version=m${branches}_$version
    what="--model $model --dataset $dataset${EPOCHS:+ --num_epochs $EPOCHS}${recipe:-} --seed $seed --version $version"
    printf '%s\n' "python $script $what$(quote --data_dir "$DATA_DIR" --save_dir "$SAVE_DIR") --resume auto$passed_on"
}

# execute LINES: print them, or become what runs them, so that a signal to the script reaches it
execute() {
    if [ -z "$1" ]; then
        echo "error: no run: a variable that lists them (SEEDS, MODELS, DATASETS, METHODS, BRANCHES) is blank" >&2
        exit 2
    elif [ -n "${DRY_RUN:-}" ]; then
        printf '%s\n' "$1"
    else
        exec "${PYTHON:-python}" scripts/run_all.py ${GPUS:+--gpus $GPUS} <<LINES
$1
LINES
    fi
}
