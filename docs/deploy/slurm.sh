#!/bin/bash
# Four workers on one study, wherever Slurm finds room for them:
#
#   DATABASE_HOST=db.example.org sbatch slurm.sh --n-trials 100000
#
# What stands behind the script's name are options of python -m wpo_optuna.study. A worker that
# Slurm ends, or whose node dies, loses the batch at hand; submitting the script again goes on.
# The password is in ~/.pgpass, see many_machines.md.
#SBATCH --job-name=wpo
#SBATCH --array=1-4
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --output=wpo-%A-%a.log

set -euo pipefail
: "${DATABASE_HOST:?the machine with PostgreSQL and MLflow}"

source .venv/bin/activate
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
# Each worker writes its results where no other one does; MLflow gets them once.
exec python -m wpo_optuna.study \
    --storage "postgresql+psycopg://wpo@$DATABASE_HOST/wpo" \
    --tracking-uri "http://$DATABASE_HOST:5000" \
    --output "wpo_results/worker-${SLURM_ARRAY_TASK_ID:-1}" \
    --quiet "$@"
