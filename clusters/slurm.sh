#!/bin/bash
# One search on a Slurm cluster, on one machine or on several: Ray is started on all machines of the job, the command runs
# on the first one, and Ray ends with it. You need a folder that all machines share, and in it this package in a virtual
# environment; activate that, name your partition of GPUs below or after `sbatch`, and type:
#
#   sbatch clusters/slurm.sh search /mnt/ich_ray/DATASET --space search_spaces/default.yaml --out /mnt/ich_ray/SEARCH
#   tail -F ich-ray-JOB.log
#   scancel JOB                     # the same `sbatch` line goes on where it was
#
# `sbatch --nodes=4 clusters/slurm.sh ...` takes four machines; any other verb of `ich-ray` works as well. A search is told
# to go on where it was, and, unless you say --hours, to end itself 10 minutes before the job's limit. A job that is
# preempted, or that has not ended 5 minutes before its limit, goes back into the queue and goes on when it starts again.
#
#SBATCH --job-name=ich-ray
#SBATCH --partition=REPLACE-WITH-A-PARTITION-OF-GPUS
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=1-00:00:00
# Whole machines, with all of their GPUs and memory: at its end Ray stops every Ray of yours on a machine, that of another
# job among them.
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
# A machine that is lost costs its trials a part, and not the job.
#SBATCH --no-kill
#SBATCH --output=ich-ray-%j.log
#SBATCH --open-mode=append

set -u
export LC_ALL=C
margin_s=600

refuse() {
    echo "slurm.sh: $1" >&2
    exit 2
}

# Hours that the job has left, less the margin; nothing where it has no limit.
hours_left() {
    squeue --noheader --jobs="$SLURM_JOB_ID" --format=%L | awk -v margin="$margin_s" '
        /^[0-9:-]+$/ {
            n = split($0, part, /[-:]/)  # days-hours:minutes:seconds, of which the first may be missing
            seconds = part[n] + 60 * part[n - 1] + (n > 2 ? 3600 * part[n - 2] : 0) + (n > 3 ? 86400 * part[n - 3] : 0)
            printf "%.3f", (seconds > margin ? seconds - margin : 0) / 3600
        }'
}

[ -n "${SLURM_JOB_ID:-}" ] || refuse "must be a batch job, got started by hand; type sbatch clusters/slurm.sh search ..."
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] ||
    refuse "one job must be one search, whose trials share its machines, got an array of jobs; leave --array out"
[ $# -gt 0 ] || refuse "must be told what to run, got nothing; type sbatch clusters/slurm.sh search DATASET ..."
for program in ich-ray ray; do
    command -v "$program" >/dev/null ||
        refuse "must find $program, got none on the PATH; activate the environment that holds it and submit again"
done

if [ "$1" = search ]; then
    case " $* " in *" --resume "*) ;; *) set -- "$@" --resume ;; esac
    case " $* " in
        *" --hours "* | *" --hours="* | *" --plan "*) ;;
        *)
            hours=$(hours_left)
            [ "$hours" != 0.000 ] || refuse "must have more than 10 minutes until the job's limit; give more with --time"
            [ -z "$hours" ] || set -- "$@" --hours "$hours"
            ;;
    esac
fi

# Ray demands the same token on all machines. `srun` hands the environment on, and other users cannot read it.
token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
[ -s "$token" ] || (umask 077 && ray get-auth-token --generate >/dev/null) || refuse "must have a token, got none at $token"
chmod 600 "$token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$token"
export RAY_TMPDIR="/tmp/ich-ray-$SLURM_JOB_ID" RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
HEAD="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):6379"
STARTED=$(mktemp "/tmp/ich-ray-$SLURM_JOB_ID-XXXXXX") # on the first machine alone, where this script runs
export HEAD STARTED

# On each machine. A Ray that is there already was left by a job of yours that was killed: the machine is this job's alone.
# `ray stop` prints pages of the processes that it ends; what leaves them out outlives a signal to all, so that the command
# can say its last words, and this waits for them. `ray symmetric-run` itself does not, and leaves its Ray behind then.
machine='mkdir -p -m 700 "$RAY_TMPDIR" && [ -O "$RAY_TMPDIR" ] || exit 1
trap : TERM
ray stop --force >/dev/null 2>&1
ray symmetric-run "$@" 2>&1 | (trap "" TERM && exec sed -u "/ scripts.py:[0-9]/d")
code=${PIPESTATUS[0]}
[ "$code" -ne 143 ] || ray stop --force >/dev/null 2>&1
rm -rf "$RAY_TMPDIR"
[ -s "$STARTED" ] || exit 0  # another machine that ends does not end the first one
exit "$code"'
# On the first one. Its number is noted, so that the command alone can be told to end, and not Ray beside it.
first='echo $$ >"$STARTED" && RAY_ADDRESS="$HEAD" exec ich-ray "$@"'

interrupted='' signalled='' machines=''
interrupt() {
    interrupted=yes signalled=yes
    kill -TERM "$(cat "$STARTED")" 2>/dev/null || kill -TERM "$machines" 2>/dev/null
}
trap interrupt USR1
# Without a word to its steps: Slurm, which sends this, ends them itself.
trap 'signalled=yes' TERM CONT

srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --cpu-bind=none --mem=0 --no-kill --kill-on-bad-exit=1 \
    bash -c "$machine" slurm.sh --address="$HEAD" --min-nodes="$SLURM_JOB_NUM_NODES" --include-dashboard=false \
    --disable-usage-stats --min-worker-port=0 --max-worker-port=0 -- bash -c "$first" slurm.sh "$@" &
machines=$!
# A signal ends `wait`, and not what is waited for.
while :; do
    signalled='' code=0
    wait "$machines" || code=$?
    [ -n "$signalled" ] || break
done
if [ "$code" -eq 0 ] && [ ! -s "$STARTED" ]; then
    echo "slurm.sh: Ray must start on the first machine, got what stands above; see to it and submit again" >&2
    code=1 # `ray symmetric-run` ends with 0
fi
rm -f "$STARTED"

# In its time of grace a preempted job is still running, and its steps have been told to end (SIGTERM); a job that was
# canceled is not. A step that was killed for its memory stays as it is: it would be so again and again.
case $code in
    130 | 143) [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" != RUNNING ] || interrupted=yes ;;
esac
if [ "$code" -ne 0 ] && [ -n "$interrupted" ]; then
    echo "slurm.sh: interrupted; job $SLURM_JOB_ID goes back into the queue" >&2
    scontrol requeue "$SLURM_JOB_ID" && sleep 600 # until Slurm ends this script
fi
exit "$code"
