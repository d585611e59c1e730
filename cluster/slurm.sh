#!/usr/bin/env bash
# Runs a search on all nodes of a Slurm allocation, with the arguments of `ticket-search`; see docs/clusters.md.
#
#   once     ray get-auth-token --generate > /dev/null    # creates ~/.ray/auth_token
#   start    sbatch cluster/slurm.sh run search_spaces/digits.yaml --output /shared/runs/digits
#
# The environment with this package must be active, and all nodes must share the home directory and the folder given as
# --output. The exit code is that of `ticket-search`. After exit code 130 (out of time), or if a node was lost, run the
# same command again to resume.
#SBATCH --job-name=ticket-search
#SBATCH --nodes=2                 # <-
#SBATCH --cpus-per-task=16        # <- on each node
#SBATCH --gpus-per-node=0         # <-
#SBATCH --time=24:00:00           # <-
#SBATCH --ntasks-per-node=1
# Request whole nodes: `ray symmetric-run` does not start on a node where Ray is running, and when it ends, it stops all
# your Ray processes on its nodes.
#SBATCH --exclusive
# A minute before the time is up, the search receives a signal and saves its results. If the job is preempted, Slurm
# restarts it, and the search resumes.
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
# shellcheck disable=SC2317,SC2329  # the functions are called by shells that this one starts
set -uo pipefail

fail() {
    echo "slurm.sh: $1" >&2
    exit 2
}

# Runs on each node: starts Ray and, on the first node, runs the search and then stops Ray.
node() {
    trap 'rm -rf "$RAY_TMPDIR"; [ ! -d "$JOB" ] || touch "$JOB/ended"' EXIT
    mkdir -m 700 "$RAY_TMPDIR" || exit 1
    ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES" \
        --num-cpus="$CPUS" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --dashboard-host=127.0.0.1 \
        -- bash -c 'search "$@"' search "$@"
}

# Runs on the first node. `ray symmetric-run` exits with 0 even if Ray did not start, so save the exit code.
search() {
    local code=0
    (echo "$BASHPID" > "$JOB/pid" && exec ticket-search "$@") || code=$?
    echo "$code" > "$JOB/code"
    return "$code"
}

interrupt() {
    if [ -s "$JOB/pid" ]; then kill -TERM "$(cat "$JOB/pid")" 2> /dev/null; fi
}

[ $# -gt 0 ] || fail "give the arguments of ticket-search, e.g. run SPACE --output DIR"
[ -n "${SLURM_JOB_ID:-}" ] || fail "start it with sbatch"
token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
[ -n "${RAY_AUTH_TOKEN:-}" ] || [ -s "$token" ] ||
    fail "no token in $token; create one: ray get-auth-token --generate > /dev/null"
for tool in ray ticket-search; do
    command -v "$tool" > /dev/null || fail "$tool is not on the path; activate the environment before sbatch"
done

# This script runs on the first node, whose name may resolve to a loopback address there, which other nodes cannot use.
address=$(getent ahostsv4 "$(hostname)" | awk '$1 !~ /^127\./ {print $1}' | sed -n 1p)
address=${address:-$(hostname -I | awk '{print $1}')}
address=${address:-127.0.0.1}
JOB=$(mktemp -d /tmp/ticket_search.XXXXXX)  # not in TMPDIR, which all nodes may share
trap 'rm -rf "$JOB"' EXIT
CPUS=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}
# Each job uses its own port, between Ray's ports and Linux's ephemeral ports. Each start of a job uses its own folder.
RAY_ADDRESS=$address:$((20000 + SLURM_JOB_ID % 10000))
RAY_TMPDIR=/tmp/ray_${SLURM_JOB_ID}_${SLURM_RESTART_COUNT:-0}
RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
export JOB CPUS RAY_ADDRESS RAY_TMPDIR RAY_AUTH_MODE RAY_USAGE_STATS_ENABLED RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT
export -f node search

trap interrupt USR1 TERM
# If a node is lost, the others continue. When the first node has finished, the job must end, because Ray on the other
# nodes would not notice.
srun --export=ALL --ntasks-per-node=1 --cpus-per-task="$CPUS" --wait=0 --kill-on-bad-exit=0 \
    bash -c 'node "$@"' node "$@" &
step=$!
while kill -0 "$step" 2> /dev/null && [ ! -e "$JOB/ended" ]; do
    sleep 1 &
    wait $!
done
kill "$step" 2> /dev/null
[ -s "$JOB/code" ] || { echo "slurm.sh: the search was not started, or was killed" >&2; exit 1; }
exit "$(cat "$JOB/code")"
