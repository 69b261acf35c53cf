#!/usr/bin/env bash
# The same program on every host of a Cloud TPU pod slice; JAX finds the hosts by itself.
#   launch/tpu_pod.sh NAME ZONE --out /mnt/shared/runs/first --mesh.fsdp -1 --prompts-per-step 64
#   PROGRAM="python jaxrl_llm/experiments/smollm2_arithmetic.py" launch/tpu_pod.sh NAME ZONE --out /mnt/shared/runs/sums
# PROGRAM, a command on the hosts, runs in the place of `train`, and unwatched; it has to know --cluster.
# The package must be installed on every host, and the folder of --out on a file system that all hosts see.
set -euo pipefail

name="${1:?usage: launch/tpu_pod.sh NAME ZONE FLAGS...}"
zone="${2:?usage: launch/tpu_pod.sh NAME ZONE FLAGS...}"
shift 2

command="${PROGRAM:-jaxrl-llm supervise --max-restarts 3 -- train} --cluster on$(printf ' %q' "$@")"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$command"
