# xargs starts this file with NUMBER:LINE, for queue.sh. It starts nothing if that was killed, or if the first runs have
# all failed (no data, no disk). The output of several runs would be mixed, and each training writes its own train.log.
number=${1%%:*} line=${1#*:} errors=/dev/null
set -- $GPUS
kill -s 0 "$queue" 2> /dev/null || exit 0
[ -s "$notes/complete" ] || [ "$(ls "$notes/failed" | wc -l)" -lt $((3 * ($# > 1 ? $# : 1))) ] || exit 0
[ $# -lt 2 ] || errors=$notes/errors.$number
[ $# = 0 ] || { shift "$slot" && line="$line --gpu_id $1"; }
echo "[$number/$(wc -l < "$notes/lines")] $line"
exec 3>&2
[ "$errors" = /dev/null ] || exec > /dev/null 2> "$errors"
student=".* --T_model \([^ ]*\) .*_\(seed[0-9]*\)[' ].* --dataset \([^ ]*\) .*\( --data_dir .* --resume auto\).*"
teacher=$(printf '%s\n' "$line" | sed -n "s/$student/: python train.py --model \1 --dataset \3 /p")
place=$(printf '%s\n' "$line" | sed -n "s/$student/ --version \2\4/p")
if [ -n "$teacher" ] && grep -Fhse "$teacher" "$notes/failed"/* | grep -Fqe "$place"; then
    why="not started (the run of its teacher has failed)"
elif sh -c "exec \"\$0\" ${line#python }" "$python" 3>&-; then
    echo >> "$notes/complete"
    exit
else
    why="failed with exit code $?"
fi
echo "[$number] $why" >&3
{ echo "$why: $line" && cat "$errors"; } > "$notes/failed/$(printf %05d "$number")"
