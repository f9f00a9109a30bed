#!/usr/bin/env bash
# Pretrain a small ConvNeXt on CIFAR-10, fine-tune it on cats and dogs, and compare that with the same network from scratch,
# a ResNet and a ResNeXt. All cats-and-dogs runs share one recipe. The results are in docs/measurements/results.md.
#
#   bash docs/measurements/story.sh CIFAR10 CATS_AND_DOGS FOLDER [EPOCHS_OF_PRETRAINING] [EPOCHS] [SIZE]
#
# CIFAR10 and CATS_AND_DOGS are sources for `bigbatch shard`, for example the zips as downloaded. Everything is kept in
# FOLDER. If the script is interrupted, the same command continues where it stopped.
set -euo pipefail

cifar10=$1 cats_dogs=$2 folder=$3 pretraining=${4:-30} epochs=${5:-60} size=${6:-64}
bigbatch() { ${BIGBATCH:-command bigbatch} "$@"; }

bigbatch shard "$cifar10" "$folder/shards/cifar10"
bigbatch shard "$cats_dogs" "$folder/shards/cats-dogs" --shortest-side "$((2 * size))"

# No EMA anywhere: it hurts networks with BatchNorm, and so short a run.
bigbatch train convnext_atto_cifar10 ema.decay=null schedule.epochs="$pretraining" schedule.warmup_epochs=$((pretraining / 30)) \
  --data "$folder/shards/cifar10" --run-dir "$folder/convnext-on-cifar10"
bigbatch evaluate "$folder/convnext-on-cifar10"

on_cats_dogs() { # name of the run, then changes to the recipe
  bigbatch train convnext_atto_cats_dogs ema.decay=null schedule.epochs="$epochs" schedule.warmup_epochs=$((epochs / 30)) \
    input.size="$size" "${@:2}" --data "$folder/shards/cats-dogs" --run-dir "$folder/$1"
  bigbatch evaluate "$folder/$1"
}
on_cats_dogs convnext-fine-tuned model.weights="$folder/convnext-on-cifar10"
on_cats_dogs convnext-from-scratch
on_cats_dogs resnet-from-scratch model.name=resnet10t model.init_std=null
on_cats_dogs resnext-from-scratch model.name=resnext50_32x4d model.init_std=null

bigbatch report "$folder"/convnext-on-cifar10 "$folder"/*-fine-tuned "$folder"/*-from-scratch --out "$folder/report.html"
