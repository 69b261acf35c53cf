#!/usr/bin/env bash
# N processes on this machine as one run, watched and restarted together.
#   launch/local.sh 2 --out runs/first --steps 300 --prompts-per-step 64
# On CPUs JAX_NUM_CPU_DEVICES says how many devices each process has; on GPUs DEVICES_PER_PROC deals them out.
set -euo pipefail

procs="${1:?usage: launch/local.sh PROCESSES TRAIN_FLAGS...}"
shift
exec jaxrl-llm supervise --procs "$procs" --devices-per-proc "${DEVICES_PER_PROC:-0}" \
    --max-restarts "${MAX_RESTARTS:-3}" -- train "$@"
