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
                printf '%s\n' "$commands" | while read -r has command; do line; done
            done
        done
    done
}

# with_flags NAME FLAG...: print what a method has (a group, a ramp-up), its training script and its flags
with_flags() {
    command=$("$python" methods.py --has "${1%+KD}") || exit 2
    case $1 in KD | *+KD) teacher=$(quote --T_model "$T_MODEL") ;; *) teacher= ;; esac
    shift
    printf '%s\n' "$command${*:+ $*}$teacher"
}

# line: print the command line of one run
line() {
    case $command in *" --T_model "*)
        command="$command$(quote --T_model_path "$SAVE_DIR/$dataset/${T_MODEL}_seed${teacher_seed:-$seed}")" ;;
    esac
    case $has in *ramp_up*) command="$command${LENGTH:+ --length $LENGTH}" ;; esac
    case "$model $command" in  # in the authors' code, branches of a VGG always have dropout
        *" --MulStu"*) ;;
        vgg*" train_GL.py"* | vgg*" train_one.py"*) command="$command --dropout ${vgg_dropout:-0.5}" ;;
    esac
    version=seed$seed
    case $command in
        *" --models "*) ;;  # names a network for each student
        *)
            case ${branches:-4}$has in
                4*) ;;
                *group*) command="$command --num_branches $branches" version=m${branches}_$version ;;
            esac
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

# What xargs runs for each line. Its arguments: a folder for notes, Python, the GPUs, NUMBER:LINE. It starts nothing if
# the script is gone and so has lost its lock, or if the first runs have all failed (no data, no disk). The output of
# several runs would be mixed, and each writes its own train.log.
one_run='
notes=$0 python=$1 number=${3%%:*} line=${3#*:}
set -- $2
! flock -n "$notes/script" true || exit 0
[ -s "$notes/complete" ] || [ "$(ls "$notes/failed" | wc -l)" -lt $((3 * ($# + ($# == 0)))) ] || exit 0
several=$(($# > 1)) errors=$notes/errors.$number
[ $# = 0 ] || { shift "$slot" && line="$line --gpu_id $1"; }
echo "[$number/$(($(wc -l < "$notes/lines")))] $line"
exec 3>&2
[ $several = 0 ] || exec > /dev/null 2> "$errors"
if printf "%s\n" "$line" | grep -q -f "$notes/no_teacher"; then
    why="not started (the run of its teacher has failed)"
elif sh -c "exec \"\$0\" ${line#python }" "$python" 3>&-; then
    echo >> "$notes/complete"
    exit
else
    why="failed with exit code $?"
fi
echo "[$number] $why" >&3
{ echo "$why: $line" && [ $several = 0 ] || cat "$errors"; } > "$notes/failed/$number"
folder="s|^python train.py --model \([^ ]*\) --dataset \([^ ]*\) .*--version \([^ ]*\) .*|/\2/\1_\3[^0-9]|p"
printf "%s\n" "$line" | sed -n "$folder" >> "$notes/no_teacher"
'

# stop NUMBER: after a signal, end xargs, so that nothing more starts, pass the signal on, and wait until the trainings
# have saved their step. Until then they hold a lock.
stop() {
    until kill -s TERM -- "-$!" 2> /dev/null || ! kill -s 0 "$!" 2> /dev/null; do :; done
    exec 9>&-
    flock "$notes/runs" true || :
    echo "stopped: start the script again to continue" >&2
    exit $((128 + $1))
}

# start LINES: run the command lines, those with a teacher after all others. xargs and the trainings have a session of
# their own: a terminal's Ctrl-C would reach them a second time, and a second signal ends a training at once.
start() {
    { command -v flock && command -v setsid && xargs --process-slot-var=slot true; } < /dev/null > /dev/null 2>&1 || {
        echo "error: flock, setsid or GNU's xargs not found: DRY_RUN=1 sh $0 | sh needs none of them" >&2
        exit 2
    }
    notes=$(mktemp -d)
    trap 'rm -rf "$notes"' EXIT
    mkdir "$notes/failed"
    touch "$notes/complete" "$notes/no_teacher"
    exec 8> "$notes/script" 9> "$notes/runs"
    flock 8 && flock 9
    lines=$1
    for which in -v -e; do
        printf '%s\n' "$lines" | grep $which ' --T_model_path ' || :
    done | grep -n '' > "$notes/lines"
    set -- ${GPUS:-}
    for which in -v -e; do
        grep $which ' --T_model_path ' "$notes/lines" > "$notes/now" || continue
        setsid xargs -d '\n' -n 1 -P $(($# + ($# == 0))) --process-slot-var=slot \
            sh -c "$one_run" "$notes" "$python" "$*" < "$notes/now" 8>&- &
        trap 'stop 1' HUP  # not under nohup
        trap 'stop 2' INT
        trap 'stop 15' TERM
        wait $! || :
    done
    tell
}

# tell: print how many runs are complete, and the failures
tell() {
    total=$(($(wc -l < "$notes/lines"))) complete=$(($(wc -l < "$notes/complete")))
    failed=$(($(ls "$notes/failed" | wc -l)))
    [ $failed = 0 ] || (cd "$notes/failed" && cat $(ls | sort -n) >&2)
    if [ $((complete + failed)) -lt $total ]; then
        echo "the first $failed runs failed, so the others were not started" >&2
    else
        echo "$complete of $total runs are complete"
    fi
    [ $complete = $total ] || {
        [ $failed = 1 ] && runs=run || runs=runs
        echo "$failed $runs failed: fix the cause, then start the script again" >&2
        exit 1
    }
}

# execute LINES: print the command lines, after those of the teachers, or run them
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
        start "$1"
    fi
}
