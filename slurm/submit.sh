#!/usr/bin/env bash
# Submits a run and keeps its code and configuration as they are now, whatever is edited until the job starts:
#   slurm/submit.sh [options of sbatch] slurm/pretrain.sbatch recipes/base.yaml [key.path=value ...]
# They are in RUN/snapshots/DATE-TIME. From the repository's folder, with the virtual environment active.
set -euo pipefail
PYTHON=${PYTHON:-python}
options=()
while [ $# -gt 0 ] && [[ $1 != *.sbatch ]]; do
    options+=("$1")
    shift
done
if [ $# -lt 2 ]; then
    sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
batch=$1 kind=$(basename "$1" .sbatch)
shift
snapshot=$("$PYTHON" -m unimo_ds.snapshot "$kind" "$(date +%Y%m%d-%H%M%S)" "$@")
echo "kept: $snapshot"
exec sbatch --export="ALL,SNAPSHOT=$snapshot" ${options[@]+"${options[@]}"} "$batch" "$snapshot/config.yaml"
