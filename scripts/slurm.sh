#!/bin/sh
# Submits the runs of a script to SLURM, as job arrays with one GPU for each task. The flags are sbatch's. Flags after
# -- are added to every run:
#
#   sh scripts/slurm.sh table2.sh --time=24:00:00 --cpus-per-task=4 -- --amp bf16
#
# PER_GPU=4 puts four runs on each GPU. DRY_RUN=1 prints the jobs. Other variables: see runs.sh. To continue after
# failures, start it again: it submits what is not finished. docs/reproducing.md says what SLURM then does.
set -eu
scripts=$(dirname "$0") script=${1:-} && script=${script##*/}
case " $* " in *" -h "* | *" --help "*) . "$scripts/runs.sh" ;; esac  # it prints the help
fail() { echo "error: $1" >&2 && exit 2; }
grep -qs '^\. .*/\(runs\|table2\)\.sh"$' "$scripts/$script" ||
    fail "scripts/$script is no script that lists runs: name one, such as table2.sh, and then sbatch's flags"
shift
case ${PER_GPU:=1} in 0* | *[!0-9]* | ????*) fail "PER_GPU must be a whole number from 1, not $PER_GPU" ;; esac
[ "${DRY_RUN:-0}" != 0 ] || command -v sbatch > /dev/null ||
    fail "sbatch not found: start this where SLURM is, or run sh scripts/$script"
lines=$(while [ $# != 0 ] && [ "$1" != -- ]; do shift; done && shift $(($# > 0)) &&
    DRY_RUN=1 sh "$scripts/$script" "$@") || exit 2
. "$scripts/runs.sh"
flags=$(for word; do [ "$word" != -- ] || break && quote "$word"; done)
eval "set -- $(printf '%s\n' "$lines" | sed 's/ --resume auto.*//;s/.* --save_dir //' | sort -u | tr '\n' ' ')"
folder=$1
left=$lines
if [ -n "$(find "$@" -name summary.json 2> /dev/null | sed 1q)" ]; then
    left=$(printf '%s\n' "$lines" | "$python" -m training.folder) || exit 2
fi
[ -n "$left" ] || { echo "all runs of $script are finished: nothing to submit" && exit; }
case $folder in *\\*) fail "SLURM cannot write into $folder: choose a SAVE_DIR without a backslash" ;; esac
if [ -n "$DRY_RUN" ]; then
    exec 3>&1
    squeue() { :; }
    sbatch() { { echo "sbatch$(quote "$@")" && cat; } >&3 && echo JOB; }
else
    { mkdir -p -- "$folder/slurm" && folder=$(CDPATH='' cd -- "$folder" && pwd -P); } || fail "$folder/slurm cannot be made"
fi
output=$(printf %s "$folder/slurm" | sed 's/%/%%/g')/%A_%a.out
name=okddip-$(printf %s "$folder" | cksum | cut -d ' ' -f 1)

# submit LINES WHAT [DEPENDENCY]: submit one array, PER_GPU lines to a task; -> $job, its number. srun starts the
# trainings, so that --signal reaches them and not the job's shell. A training that SIGTERM has stopped ends with 128 +
# 15; its task is queued again by its name, ARRAY_TASK: in one of the tasks, SLURM_JOB_ID names the whole array.
submit() {
    number=$(printf '%s\n' "$1" | wc -l) what=$2
    cases=$(n=0 && printf '%s\n' "$1" | while read -r line; do
        printf '%s\n' "$n) exec$(quote "$python") ${line#python } ;;" && n=$((n + 1))
    done)
    set -- "--array=0-$(((number - 1) / PER_GPU))" ${3:+"--dependency=$3"}
    job=$(eval 'sbatch --gres=gpu:1 --signal=TERM@120 --output="$output"' "$flags" '"$@" --job-name="$name" --nodes=1' \
        '--ntasks="$PER_GPU" --requeue --open-mode=append --kill-on-invalid-dep=yes --parsable' <<JOB
#!/bin/sh
srun --label --kill-on-bad-exit=0 --wait=0 \${SLURM_CPUS_PER_TASK:+--cpus-per-task=\$SLURM_CPUS_PER_TASK} sh <<'RUNS'
case \$((SLURM_ARRAY_TASK_ID * SLURM_NTASKS + SLURM_PROCID)) in
$cases
esac
RUNS
code=\$?
[ \$code != 143 ] || scontrol requeue "\${SLURM_ARRAY_JOB_ID}_\$SLURM_ARRAY_TASK_ID"
exit \$code
JOB
    ) || fail "start this again: the $number $what are not in the queue"
    case ${job%%;*} in  # a word among the flags would be another job
        JOB) ;;
        '' | *[!0-9]*) fail "sbatch printed no job number, check its flags; it said: $job" ;;
    esac
    job=${job%%;*}
    echo "job $job: $number $what"
}

# All jobs of a folder have one name. New ones wait until the earlier ones have ended: no run is trained twice.
queued=$(squeue --noheader --user="$(id -u)" --name="$name" --states=PENDING,RUNNING,SUSPENDED,COMPLETING \
    --format=:%F) || fail "squeue does not say which runs are in the queue: start this again later"
earlier=$(printf '%s\n' "$queued" | sort -u | tr -d ' \n')
after=${earlier:+afterany$earlier}
lines() { printf '%s\n' "$left" | sed "$@"; }
students=$(lines -n '/ --T_model_path /p')
teacher="\\|^python train.py --model $(lines -n 's/.* --T_model \([^ ]*\) .*/\1/p' | sed 1q) |"
first=$(lines -n "${teacher}p" && lines "${teacher}d;/ --T_model_path /d") teachers=$(lines -n "${teacher}p" | wc -l)
if [ -n "$first" ]; then
    submit "$first" runs "$after"
    task=0
    while [ $((task * PER_GPU)) -lt "$teachers" ]; do
        after="${after:+$after,}afterok:${job}_$task" task=$((task + 1))
    done
fi
[ -z "$students" ] || submit "$students" "runs with a teacher" "$after"
