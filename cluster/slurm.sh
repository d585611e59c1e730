#!/usr/bin/env bash
# A search on all nodes of a Slurm allocation, with the arguments of `ticket-search`. docs/clusters.md says more.
#
#   once     ray get-auth-token --generate > /dev/null    # makes ~/.ray/auth_token
#   start    sbatch cluster/slurm.sh run search_spaces/digits.yaml --output /shared/runs/digits
#
# With this package's environment active, in a home and with an --output that all nodes share. Its exit code is that of
# `ticket-search`; after 130 (time over) or a lost node, the same command goes on where it was.
#SBATCH --job-name=ticket-search
#SBATCH --nodes=2                 # <-
#SBATCH --cpus-per-task=16        # <- of each node
#SBATCH --gpus-per-node=0         # <-
#SBATCH --time=24:00:00           # <-
#SBATCH --ntasks-per-node=1
# Whole nodes: `ray symmetric-run` does not start beside another Ray, and ends every Ray of yours on its nodes.
#SBATCH --exclusive
# A minute before the time is over the search is told, and saves what it has; preempted, it starts again and goes on.
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
# shellcheck disable=SC2317,SC2329  # shells that this one starts call these functions
set -uo pipefail

fail() {
    echo "slurm.sh: $1" >&2
    exit 2
}

# On each node: start Ray; on the first, run the search and end Ray after it.
node() {
    trap 'rm -rf "$RAY_TMPDIR"; [ ! -d "$JOB" ] || touch "$JOB/ended"' EXIT
    mkdir -m 700 "$RAY_TMPDIR" || exit 1
    ray symmetric-run --address "$RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES" \
        --num-cpus="$CPUS" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --dashboard-host=127.0.0.1 \
        -- bash -c 'search "$@"' search "$@"
}

# On the first node. `ray symmetric-run` ends with 0 where Ray did not start, so the exit code is noted here.
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
    fail "no token in $token; make one: ray get-auth-token --generate > /dev/null"
for tool in ray ticket-search; do
    command -v "$tool" > /dev/null || fail "$tool is not on the path; activate the environment before sbatch"
done

# This script runs on the first node. A name that stands for a loopback address there would not do for the others.
address=$(getent ahostsv4 "$(hostname)" | awk '$1 !~ /^127\./ {print $1}' | sed -n 1p)
address=${address:-$(hostname -I | awk '{print $1}')}
address=${address:-127.0.0.1}
JOB=$(mktemp -d /tmp/ticket_search.XXXXXX)  # of this node: a TMPDIR may be one that all nodes see
trap 'rm -rf "$JOB"' EXIT
CPUS=${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}
# Another port and folder for each job, and for each time that it starts: below Linux's own ports, above those of Ray.
RAY_ADDRESS=$address:$((20000 + SLURM_JOB_ID % 10000))
RAY_TMPDIR=/tmp/ray_${SLURM_JOB_ID}_${SLURM_RESTART_COUNT:-0}
RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
export JOB CPUS RAY_ADDRESS RAY_TMPDIR RAY_AUTH_MODE RAY_USAGE_STATS_ENABLED RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT
export -f node search

trap interrupt USR1 TERM
# A node that is lost does not end the others. When the first has ended all is over; Ray on the others would not notice.
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
