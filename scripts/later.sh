#!/bin/sh
# The table of a later paper, PCL (AAAI 2021): CIFAR-10 and CIFAR-100, five networks, groups of three students, the
# methods that it compares, and OKDPH. table1.sh and table2.sh train the baselines. All have the same recipe, so no
# branch of a VGG has dropout. Variables and flags: see runs.sh.
. "$(dirname "$0")/runs.sh"
DATASETS=${DATASETS:-CIFAR10 CIFAR100} MODELS=${MODELS:-resnet32 resnet110 vgg16 densenetd40k12 wide_resnet20_8}
branches=3 vgg_dropout=0

# The settings of OKDPH's authors. Other networks and data have the method's defaults.
settings=$(while read -r network data flags; do
    printf '%s\n' "s/^python train_OKDPH.py\( .*--model $network --dataset $data .*\)/python train_OKDPH.py $flags\1/"
done <<'END'
    vgg16           CIFAR10   --omega 0.3 --beta 0.3 --gamma 1 --interval 1_epoch
    vgg16           CIFAR100  --omega 0.3 --beta 0.3 --gamma 1 --interval 1_epoch
    resnet32        CIFAR10   --omega 0.8 --beta 0.8 --gamma 0.5 --interval 1_epoch
    resnet32        CIFAR100  --omega 1 --beta 0.5 --gamma 1 --interval 5_batch
    resnet110       CIFAR10   --omega 0.8 --beta 0.8 --gamma 0.5 --interval 5_batch
    resnet110       CIFAR100  --omega 0.8 --beta 0.8 --gamma 0.5 --interval 5_batch
    densenetd40k12  CIFAR10   --omega 0.8 --beta 0.8 --gamma 0.5 --interval 5_batch
    densenetd40k12  CIFAR100  --omega 1 --beta 0.5 --gamma 0.5 --interval 5_batch
    wide_resnet20_8 CIFAR10   --omega 0.8 --beta 0.8 --gamma 0.5 --interval 1_epoch
    wide_resnet20_8 CIFAR100  --omega 0.5 --beta 0.5 --gamma 0.5 --interval 5_batch
END
)
lines=$(runs ${METHODS:-DML CL-ILR ONE FFL OKDDip KDCL PCL OKDPH}) || exit
execute "$(printf '%s\n' "$lines" | sed "$settings")"
