#!/bin/bash
# Several nodes under SLURM, one task per GPU. From the repository's folder: sbatch docs/slurm.sh [options of main.py fit]
# Lightning reads ranks and addresses from SLURM, so --trainer.devices and --trainer.num_nodes are those of the allocation.
# Resume: sbatch docs/slurm.sh --ckpt_path last (SLURM sends USR1 two minutes before the time is up: last.ckpt is
# written when the step is done, and the job is requeued).
#SBATCH --job-name=lightning_app
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@120
#SBATCH --output=slurm-%j.txt
set -euo pipefail

export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

srun .venv/bin/python main.py fit \
  --config "${CONFIG:-configs/article_gpt_162m.yaml}" \
  --config configs/overlays/multi_node.yaml \
  --trainer.num_nodes "$SLURM_NNODES" \
  --trainer.devices "$SLURM_NTASKS_PER_NODE" \
  "$@"
