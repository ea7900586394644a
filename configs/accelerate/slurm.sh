#!/bin/bash
# SLURM: one launcher a node, which starts one process a GPU. Set nodes, GPUs, CPUs and time below
# (or as options of sbatch), and submit:
#   sbatch configs/accelerate/slurm.sh --config configs/tap.yaml [section.key=value ...] [--resume | --overwrite]
# Submit it where train.py lies, with the Python environment active. The cache must be readable,
# and train.output the same shared folder, on all nodes. Before its time is up the job gets
# SIGTERM, saves a state and ends: submit it again with --resume.
# `srun python train.py` starts processes that do not know of each other, and is refused. For one
# process: srun --ntasks=1 python evaluate.py ...
# Run with SLURM 22.05 on one node without GPUs, two processes (PROCESSES_PER_NODE=2); not run yet
# on several nodes, nor on GPUs.
#SBATCH --job-name=retrieval
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
set -euo pipefail

# PROCESSES_PER_NODE is for nodes without GPUs, together with ACCELERATE_USE_CPU=true.
export NUM_PROCESSES=$((SLURM_NNODES * ${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}))
export MAIN_ADDRESS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MAIN_PORT=$((10000 + SLURM_JOB_ID % 22000))  # jobs that share a node need ports of their own
export LOGLEVEL=${LOGLEVEL:-INFO}  # the launchers say where they wait for each other

# bash runs on each node, so that SLURM_NODEID is that node's.
srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} bash -c '
    [ "$NUM_PROCESSES" -gt 1 ] && kind=--multi_gpu || kind=
    exec accelerate launch --quiet $kind --num_machines "$SLURM_NNODES" --num_processes "$NUM_PROCESSES" --machine_rank "$SLURM_NODEID" \
        --main_process_ip "$MAIN_ADDRESS" --main_process_port "$MAIN_PORT" --mixed_precision no --dynamo_backend no train.py "$@"
' train.py "$@"
