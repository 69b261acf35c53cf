#!/usr/bin/env bash
# The same program on every host of a Cloud TPU pod slice; JAX finds the hosts by itself.
#   launch/tpu_pod.sh NAME ZONE --out /mnt/shared/runs/first --mesh.fsdp -1 --prompts-per-step 64
# The package must be installed on every host, and the folder of --out on a file system that all hosts see.
set -euo pipefail

name="${1:?usage: launch/tpu_pod.sh NAME ZONE TRAIN_FLAGS...}"
zone="${2:?usage: launch/tpu_pod.sh NAME ZONE TRAIN_FLAGS...}"
shift 2

command="jaxrl-llm supervise --max-restarts 3 -- train --cluster on$(printf ' %q' "$@")"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"
