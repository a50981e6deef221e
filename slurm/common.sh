# Shared by the sbatch files; sourced, not run. Only srun starts processes: no ssh, no hostfile.

# The first node's address: a node name need not resolve on every cluster, its NodeAddr is what Slurm itself uses.
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$(scontrol show node -o "$head_node" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
export MASTER_ADDR=${MASTER_ADDR:-$head_node}
export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
PYTHON=${PYTHON:-python}

echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), nodes $SLURM_JOB_NODELIST, $SLURM_NTASKS ranks, master $MASTER_ADDR:$MASTER_PORT"

# run_until_done COMMAND...: runs it as one srun step, hands the signals of a time limit or a preemption to its ranks (they
# agree on a step, save, and end with 0), and returns the step's exit code.
run_until_done() {
    # Until a rank listens to USR1, when it has started, the signal must not kill it.
    srun --kill-on-bad-exit=1 bash -c 'trap "" USR1; exec "$@"' rank "$@" &
    local step=$! code=0
    time_is_up= reminder=
    # In the foreground, srun would keep bash from seeing the signal until the step has ended.
    trap 'time_is_up=yes; ask_to_save' USR1
    trap ask_to_save TERM # scancel, or a preemption after which Slurm requeues by itself
    while :; do
        wait "$step" && code=0 || code=$?
        kill -0 "$step" 2>/dev/null || break # `wait` also returns when a signal was trapped
    done
    trap - USR1 TERM
    [ -z "$reminder" ] || kill "$reminder" 2>/dev/null || true
    return "$code"
}

# Asks again and again: ranks that are only starting do not hear it the first time.
ask_to_save() {
    [ -z "$reminder" ] || return 0
    echo "signal: asking the ranks to save"
    while :; do
        scancel --signal=USR1 "$SLURM_JOB_ID" 2>/dev/null || true # the step may have ended by itself
        sleep 3
    done &
    reminder=$!
}

# requeue_if_wanted RUN_FOLDER: puts the job back into the queue if its time ran out before the run was done.
requeue_if_wanted() {
    if [ -n "$time_is_up" ] && [ -e "$1/REQUEUE" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "${MAX_RESTARTS:-100}" ]; then
        rm -f "$1/REQUEUE"
        echo "requeue: the run goes on from its last checkpoint"
        scontrol requeue "$SLURM_JOB_ID"
    fi
}
