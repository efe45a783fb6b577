#!/bin/sh
# The table of a later paper, PCL (AAAI 2021): CIFAR-10 and CIFAR-100, five networks, groups of three students, the
# methods that it compares, and OKDPH. Their baseline is made by table1.sh and table2.sh. All have the same recipe, so
# no branch of a VGG has dropout. Variables and flags: see runs.sh.
. "$(dirname "$0")/runs.sh"
DATASETS=${DATASETS:-CIFAR10 CIFAR100} MODELS=${MODELS:-resnet32 resnet110 vgg16 densenetd40k12 wide_resnet20_8}
branches=3 vgg_dropout=0

# okdph: add the settings of OKDPH's authors to its command lines. Other networks and data have the method's defaults.
okdph() {
    while IFS= read -r command; do
        case ${command#python train_OKDPH.py*--model } in
            "$command") set -- ;;  # another method
            "vgg16 --dataset CIFAR10 "* | "vgg16 --dataset CIFAR100 "*) set -- 0.3 0.3 1 1_epoch ;;
            "resnet32 --dataset CIFAR10 "* | "wide_resnet20_8 --dataset CIFAR10 "*) set -- 0.8 0.8 0.5 1_epoch ;;
            "densenetd40k12 --dataset CIFAR10 "* | "resnet110 --dataset CIFAR10 "* | "resnet110 --dataset CIFAR100 "*)
                set -- 0.8 0.8 0.5 5_batch ;;
            "resnet32 --dataset CIFAR100 "*) set -- 1 0.5 1 5_batch ;;
            "densenetd40k12 --dataset CIFAR100 "*) set -- 1 0.5 0.5 5_batch ;;
            "wide_resnet20_8 --dataset CIFAR100 "*) set -- 0.5 0.5 0.5 5_batch ;;
            *) set -- ;;
        esac
        [ $# = 0 ] || command="python train_OKDPH.py --omega $1 --beta $2 --gamma $3 --interval $4${command#*.py}"
        printf '%s\n' "$command"
    done
}
lines=$(runs ${METHODS:-DML CL-ILR ONE FFL OKDDip KDCL PCL OKDPH}) || exit
execute "$(printf '%s\n' "$lines" | okdph)"
