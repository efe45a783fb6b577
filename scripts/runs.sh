# The other scripts source this file. It prints or runs the command lines of trainings. Variables of the environment:
#
#   SEEDS="0 1 2"          seeds                          DATA_DIR=./Data        folder of the data
#   EPOCHS=300             epochs of each training        SAVE_DIR=./runs/paper  folder of the runs; with EPOCHS,
#                                                                                ./runs/paper_<EPOCHS>_epochs
#   GPUS="0 1"             one run at a time on each;     DRY_RUN=1              print the commands, run nothing
#                          "0 0 1 1": two on each
#   MODELS, DATASETS       other networks, other data     LENGTH=80              epochs of the ramp-up
#   METHODS="KD ONE"       other methods: names from methods.py, with more flags after colons, and +KD for a teacher:
#                          "OKDDip:--aggregation:random OKDDip+KD"
#   T_MODEL=resnet110      the teacher                    PYTHON=python          the Python that runs everything
#
# Flags of a script are added to every command; --help prints this. To continue after a stop, start the script again:
# finished runs are skipped, interrupted runs continue. Runs that several tables need are made once. The teachers of runs
# are trained, too.
set -eu

# help: print the comment at the beginning of the script and of this file
help() {
    sed -n '1{/^#!/d;};/^#/!q;s/^# \{0,1\}//p' "$0"
    echo
    sed -n '/^#/!q;s/^# \{0,1\}//p' "$(dirname "$0")/runs.sh"
}
for word; do
    case $word in -h | --help) help && exit ;; esac
done

CDPATH='' cd -- "$(dirname "$0")/.." > /dev/null  # relative paths begin at the repository's root
SEEDS=${SEEDS:-0 1 2} DATA_DIR=${DATA_DIR:-./Data} T_MODEL=${T_MODEL:-resnet110}
# Each length has its own folder. Otherwise a full training would continue a short trial, at its low learning rate.
SAVE_DIR=${SAVE_DIR:-./runs/paper${EPOCHS:+_${EPOCHS}_epochs}}
[ "${DRY_RUN:-}" != 0 ] || DRY_RUN=
unset branches recipe teacher_seed vgg_dropout

python=${PYTHON:-python}
if ! command -v "$python" > /dev/null; then
    if [ -z "${DRY_RUN:-}" ]; then
        echo "error: $python not found: name a Python with PYTHON=/path/to/python" >&2
        exit 127
    fi
    python=python3  # to print the commands, any Python will do
fi

# quote WORD...: print the words so that a shell reads them back unchanged
quote() {
    for word; do
        case $word in
            '' | *[!A-Za-z0-9_./:=@%+,-]*) printf " '%s'" "$(printf %s "$word" | sed "s/'/'\\\\''/g")" ;;
            *) printf ' %s' "$word" ;;
        esac
    done
}
more_flags=$(quote "$@")

# runs METHOD...: print the command line of each run. A METHOD is written as in METHODS.
runs() {
    commands=$(for method; do with_flags $(printf %s "$method" | tr : ' '); done) || exit 2
    [ -n "$commands" ] || return 0
    for seed in $SEEDS; do
        for dataset in $DATASETS; do
            for model in $MODELS; do
                printf '%s\n' "$commands" | while read -r command; do line; done
            done
        done
    done
}

# with_flags NAME FLAG...: print the training script and the flags of a method
with_flags() {
    command=$("$python" methods.py "${1%+KD}") || exit 2
    case $1 in KD | *+KD) teacher=$(quote --T_model "$T_MODEL") ;; *) teacher= ;; esac
    shift
    printf '%s\n' "$command${*:+ $*}$teacher"
}

# line: print the command line of one run
line() {
    case $command in *" --T_model "*)
        command="$command$(quote --T_model_path "$SAVE_DIR/$dataset/${T_MODEL}_seed${teacher_seed:-$seed}")" ;;
    esac
    case $command in
        *" --ind"*) ;;  # no ramp-up
        *) ! grep -q ramp_up_flags "${command%% *}" || command="$command${LENGTH:+ --length $LENGTH}" ;;
    esac
    case "$model $command" in  # in the authors' code, branches of a VGG always have dropout
        *" --MulStu"*) ;;
        vgg*" train_GL.py"* | vgg*" train_one.py"*) command="$command --dropout ${vgg_dropout:-0.5}" ;;
    esac
    version=seed$seed
    case $command in
        *" --models "*) ;;  # names a network for each student
        *) [ "${branches:-4}" = 4 ] || ! grep -q group_flags "${command%% *}" ||
                command="$command --num_branches $branches" version=m${branches}_$version
            command="$command --model $model" ;;
    esac
    what="--dataset $dataset${EPOCHS:+ --num_epochs $EPOCHS}${recipe:-} --seed $seed --version $version"
    printf '%s\n' "python $command $what$(quote --data_dir "$DATA_DIR" --save_dir "$SAVE_DIR") --resume auto$more_flags"
}

# each_once LINES: print the lines, without those that have come before
each_once() {
    seen='
'
    printf '%s\n' "$1" | while read -r line; do
        case $seen in *"
$line
"*) ;;
            *) seen="$seen$line
" && printf '%s\n' "$line" ;;
        esac
    done
}

# execute LINES: print the command lines, after those of the teachers, or run them. exec: a signal to the script reaches
# run_all.py
execute() {
    case $1 in *" --T_model "*)
        set -- "$(SEEDS=${teacher_seed:-$SEEDS} MODELS=$T_MODEL && runs baseline)
$1" ;;
    esac
    set -- "$(each_once "$1")"
    if [ -z "$1" ]; then
        echo "error: no run: a variable that lists them (SEEDS, MODELS, DATASETS, METHODS, BRANCHES) is blank" >&2
        exit 2
    elif [ -n "${DRY_RUN:-}" ]; then
        printf '%s\n' "$1"
    else
        exec "$python" scripts/run_all.py ${GPUS:+--gpus $GPUS} <<LINES
$1
LINES
    fi
}
