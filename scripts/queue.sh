# runs.sh sources this file. It runs the command lines in $lines, those with a teacher after all others: one at a time,
# or one on each of GPUS. xargs and the trainings have their own session. Otherwise a terminal's Ctrl-C would reach them
# a second time, and a second signal ends a training at once.
{ command -v flock && command -v setsid && xargs --process-slot-var=slot true; } < /dev/null > /dev/null 2>&1 ||
    fail "flock, setsid or GNU's xargs not found: DRY_RUN=1 sh $0 | sh needs none of them"
notes=$(mktemp -d)
export notes python queue=$$ GPUS="${GPUS:-}"
trap 'rm -rf "$notes"' EXIT
mkdir "$notes/failed"
touch "$notes/complete"
exec 9> "$notes/running"
flock 9  # released when the last process that has inherited it ends

# stop NUMBER: after a signal, end xargs, so that nothing more starts, pass the signal on, and wait until the trainings
# have saved their step.
stop() {
    trap '' HUP  # a closed terminal may send it twice
    until kill -s TERM -- "-$!" 2> /dev/null || ! kill -s 0 "$!" 2> /dev/null; do :; done
    exec 9>&-
    flock "$notes/running" true || :
    echo "stopped: start the script again to continue" >&2
    exit $((128 + $1))
}

for which in -v -e; do
    printf '%s\n' "$lines" | grep $which ' --T_model_path ' || :
done | grep -n '' > "$notes/lines"
for which in -v -e; do
    grep $which ' --T_model_path ' "$notes/lines" > "$notes/now" || continue
    setsid xargs -d '\n' -n 1 -P "$(set -- $GPUS && echo $(($# > 1 ? $# : 1)))" --process-slot-var=slot \
        sh scripts/one_run.sh < "$notes/now" &
    trap 'stop 1' HUP  # not under nohup
    trap 'stop 2' INT
    trap 'stop 15' TERM
    wait $! || :
done

total=$(wc -l < "$notes/lines") complete=$(wc -l < "$notes/complete") failed=$(ls "$notes/failed" | wc -l)
[ "$failed" = 0 ] || cat "$notes/failed"/* >&2
if [ $((complete + failed)) -lt "$total" ]; then
    echo "the first $failed runs failed, so the others were not started" >&2
else
    echo "$complete of $total runs are complete"
fi
[ "$complete" = "$total" ] || {
    [ "$failed" = 1 ] && runs=run || runs=runs
    echo "$failed $runs failed: fix the cause, then start the script again" >&2
    exit 1
}
