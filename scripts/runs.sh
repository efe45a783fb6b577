# The other scripts source this file. It prints or runs the command lines of trainings. Environment variables:
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
# A script's flags are added to every command; --help prints this. To continue after a stop, start the script again:
# finished runs are skipped, interrupted runs continue. Runs that several tables need are trained once. Teachers are
# trained first.
set -eu
fail() { echo "error: $1" >&2 && exit "${2:-2}"; }

# comment FILE: print the comment at its beginning
comment() { sed -n '1{/^#!/d;};/^#/!q;s/^# \{0,1\}//p' "$1"; }
case " $* " in
    *" -h "* | *" --help "*) comment "$0" && echo && comment "$(dirname "$0")/runs.sh" && exit ;;
esac

CDPATH='' cd -- "$(dirname "$0")/.." > /dev/null  # relative paths begin at the repository's root
SEEDS=${SEEDS:-0 1 2} DATA_DIR=${DATA_DIR:-./Data} T_MODEL=${T_MODEL:-resnet110}
# Each length has its own folder. Otherwise a full training would continue a short trial, at its low learning rate.
SAVE_DIR=${SAVE_DIR:-./runs/paper${EPOCHS:+_${EPOCHS}_epochs}}
case $SAVE_DIR$DATA_DIR in
    *"
"*) fail "SAVE_DIR and DATA_DIR must not contain a line break" ;;
esac
[ "${DRY_RUN:=}" != 0 ] || DRY_RUN=
unset branches recipe teacher_seed vgg_dropout

python=${PYTHON:-python}
[ -z "$DRY_RUN" ] || command -v "$python" > /dev/null || python=python3  # any Python can print the commands
command -v "$python" > /dev/null || fail "$python not found: name a Python with PYTHON=/path/to/python" 127

# quote WORD...: print the words so that a shell reads them back unchanged
quote() {
    for word; do
        case $word in
            '' | *[!A-Za-z0-9_./:=@%+,-]*) word="'$(printf %s "$word" | sed "s/'/'\\\\''/g")'" ;;
        esac
        printf ' %s' "$word"
    done
}
more_flags=$(quote "$@")

# runs METHOD...: print the command line of each run. A METHOD is written as in METHODS.
runs() {
    commands=$(for method; do with_flags $(printf %s "$method" | tr : ' '); done) || exit 2
    for seed in $SEEDS; do
        for dataset in $DATASETS; do
            for model in $MODELS; do
                printf '%s\n' "$commands" | while read -r has command && [ -n "$has" ]; do line; done
            done
        done
    done
}

# with_flags NAME FLAG...: print what a method has (a group, a ramp-up), its training script with its flags, and | FLAG...
with_flags() {
    command=$("$python" methods.py --has "${1%+KD}") || exit 2
    case $1 in KD | *+KD) teacher=$(quote --T_model "$T_MODEL") ;; *) teacher= ;; esac
    shift
    case " $*" in *" --T_model"*) fail "a teacher is named with +KD and T_MODEL: leave out --T_model in METHODS" ;; esac
    printf '%s\n' "$command$teacher | $*"
}

# line: print the command line of one run. The flags in METHODS come after all others, so they win.
line() {
    more=$(printf %s " ${command##* |}" | sed 's/ *$//;s/^  */ /') command=${command% |*}
    version=seed$seed network=" --model $model"
    size=$(printf %s "$more" | sed -n 's/.* --num_branches[ =]\([0-9]*\).*/\1/p') students=${size:-${branches:-4}}
    case $command in *" --T_model "*)
        folder=$(printf %s "$T_MODEL" | sed 's/[^+]*\///g;s/\.py:/-/g;s/:/-/g')  # as the training names it
        command="$command$(quote --T_model_path "$SAVE_DIR/$dataset/${folder}_seed${teacher_seed:-$seed}")" ;;
    esac
    case $has in *ramp_up*) command="$command${LENGTH:+ --length $LENGTH}" ;; esac
    case "$model $command$more" in  # in the authors' code, branches of a VGG always have dropout
        *" --MulStu"*) ;;
        vgg1[69]" train_GL.py"* | vgg1[69]" train_one.py"*) command="$command --dropout ${vgg_dropout:-0.5}" ;;
    esac
    case $more in *" --models "*) network= has=- ;; esac  # it names a network for each student
    case $has/$students in
        group*/4) ;;
        group*) version=m${students}_$version && [ -n "$size" ] || network=" --num_branches $students$network" ;;
    esac
    what="--dataset $dataset${EPOCHS:+ --num_epochs $EPOCHS}${recipe:-} --seed $seed --version $version"
    where=$(quote --data_dir "$DATA_DIR" --save_dir "$SAVE_DIR")
    printf '%s\n' "python $command$network $what$where --resume auto$more$more_flags"
}

# with_teachers LINES: print the command lines, before them those of their teachers
with_teachers() {
    case $1 in *" --T_model "*) (SEEDS=${teacher_seed:-$SEEDS} MODELS=$T_MODEL && runs baseline) ;; esac
    printf '%s\n' "$1"
}

# execute LINES: print or run the command lines, those of the teachers first, each of them once
execute() {
    lines=$(with_teachers "$1" | awk '!seen[$0]++')
    [ -n "$lines" ] || fail "no run: a variable that lists them (SEEDS, MODELS, DATASETS, METHODS, BRANCHES) is blank"
    if [ -n "$DRY_RUN" ]; then
        printf '%s\n' "$lines"
    else
        . scripts/queue.sh
    fi
}
