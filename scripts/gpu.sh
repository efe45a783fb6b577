#!/bin/sh
# Makes .venv, installs the requirements, and prints what a GPU does with this code: its tests, the times of training
# steps with each network of the paper's tables, and of four trainings at a time. It takes about ten minutes.
# The flags go to benchmarks/step.py. Without a GPU, this tries the same in two minutes:
# MODELS=resnet8 sh scripts/gpu.sh --device cpu --batch_size 8 --rounds 1 --steps 1
set -eu
REQUIREMENTS=requirements-dev.txt
. "$(dirname "$0")/setup.sh"
failed=0

# step FLAG...: a failure is printed, and the rest continues
step() {
    echo
    echo "benchmarks/step.py $*"
    .venv/bin/python benchmarks/step.py --device cuda "$@" || failed=1
}

.venv/bin/python benchmarks/step.py --device cuda --model resnet8 --rounds 1 "$@" > /dev/null  # ends here without a GPU
.venv/bin/python -m pytest -q -m gpu -n auto --maxprocesses 8 tests/test_cuda.py || failed=1
for model in ${MODELS:-resnet32 densenetd40k12 vgg16 resnet110 wide_resnet20_8}; do
    step --model "$model" --rounds 5 --steps 10 "$@"
done
[ -n "${MODELS:-}" ] || step --model resnet34 --dataset imagenet --rounds 5 --steps 10 "$@"
model=${MODELS:-resnet32}
model=${model%% *}
for mode in --compile --tf32 "--amp bf16"; do
    step --model "$model" --rounds 5 --steps 10 --ours $mode "$@"
done
step --model "$model" --rounds 100 --steps 20 --ours "$@"
echo
echo "four at a time; each step takes longer, and if it is less than four times as long, run several on one GPU:"
for i in 1 2 3 4; do
    .venv/bin/python benchmarks/step.py --device cuda --model "$model" --rounds 100 --steps 20 --ours "$@" &
    started="${started:-} $!"
done
for i in $started; do
    wait "$i" || failed=1
done
exit $failed
