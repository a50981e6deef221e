# Shared by the sbatch files; sourced, not run. Only srun starts processes: no ssh, no hostfile. docs/slurm.md explains it.

# The first node's address: a node name need not resolve on every cluster, its NodeAddr is what Slurm itself uses.
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$(scontrol show node -o "$head_node" | sed -n 's/.* NodeAddr=\([^ ]*\).*/\1/p')
export MASTER_ADDR=${MASTER_ADDR:-$head_node}
export MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}
# Since Slurm 22.05 a step no longer takes it from the job, and would give each rank one processor.
[ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
PYTHON=${PYTHON:-python}

echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), nodes $SLURM_JOB_NODELIST, $SLURM_NTASKS ranks, master $MASTER_ADDR:$MASTER_PORT"

# train pretrain|finetune CONFIG.yaml [key.path=value ...]: runs it to its end, or until its time is up; then the job goes
# back into the queue. A step that fails is started again in this allocation where `unimo-ds supervise` finds that it can help.
train() {
    time_is_up= reminder=
    trap 'time_is_up=yes; ask_to_save' USR1
    trap ask_to_save TERM # scancel, or a preemption after which Slurm requeues by itself
    # Code and configuration as they are at the first start; `slurm/submit.sh` has taken them when the job was submitted.
    # What is edited later must not lead a job that was put back elsewhere: it finds its snapshot by a note.
    local note=".unimo-job-$SLURM_JOB_ID"
    if [ -z "${SNAPSHOT:-}" ] && [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -e "$note" ]; then SNAPSHOT=$(cat "$note"); fi
    SNAPSHOT=${SNAPSHOT:-$("$PYTHON" -m unimo_ds.snapshot "$1" "job-$SLURM_JOB_ID" "${@:2}")}
    { echo "$SNAPSHOT" >"$note"; } 2>/dev/null || true # a folder that cannot be written to keeps no note
    export PYTHONPATH="$SNAPSHOT/code${PYTHONPATH:+:$PYTHONPATH}"
    local run code=0
    run=$(dirname "$(dirname "$SNAPSHOT")")
    # Until a rank listens to USR1, when it has started, the signal must not kill it.
    local on_rank=(bash -c 'trap "" USR1; exec "$@"' rank "$PYTHON")
    # At every start: a job that was put back may have other nodes. Whoever is missing is the doctor's to name, not srun's to end.
    if [ "${DOCTOR:-yes}" != no ]; then
        local doctor=(srun --kill-on-bad-exit=0 --wait=60 "${on_rank[@]}" "$SNAPSHOT/code/cli.py" doctor "$SNAPSHOT/config.yaml")
        attend "${doctor[@]}" || code=$?
        # Ranks were missing, or only late (the first reading of packages from a shared disk is slow), or hung until --wait ended them.
        if [ "$code" = 3 ] || { [ "$code" -gt 128 ] && [ -z "$reminder" ]; }; then
            code=0
            attend "${doctor[@]}" || code=$?
        fi
    fi
    if [ "$code" = 0 ]; then
        attend "$PYTHON" "$SNAPSHOT/code/cli.py" supervise "$run" --max-restarts "${MAX_RESTARTS:-3}" -- \
            srun --kill-on-bad-exit=1 "${on_rank[@]}" "$SNAPSHOT/code/start.py" "$SNAPSHOT/config.yaml" || code=$?
    fi
    [ -z "$reminder" ] || kill "$reminder" 2>/dev/null || true
    requeue_if_wanted "$run"
    [ -n "$reminder" ] || rm -f "$note" # whoever asked it to stop may put it back
    exit "$code"
}

# attend COMMAND...: runs it while this shell hears signals, which it would not before a command in the foreground has ended.
attend() {
    "$@" &
    local command=$!
    wait "$command" || true
    while kill -0 "$command" 2>/dev/null; do # `wait` also returns when a signal was trapped
        wait "$command" || true
    done
    wait "$command" # bash remembers its exit code
}

# Asks again and again: ranks that are only starting, or are started again, do not hear it the first time.
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
    if [ -n "$time_is_up" ] && [ -e "$1/REQUEUE" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "${MAX_REQUEUES:-100}" ]; then
        rm -f "$1/REQUEUE"
        echo "requeue: the run goes on from its last checkpoint"
        scontrol requeue "$SLURM_JOB_ID"
    fi
}
