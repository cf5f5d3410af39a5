#!/usr/bin/env bash
# Starts one node's processes of a run on several nodes; spin.sbatch calls it once per node by srun.
# Without Slurm, set the same variables by hand on each node:
#
#   SLURM_NNODES=2 SLURM_NODEID=0 MASTER_ADDR=host0 MASTER_PORT=29500 GPUS_PER_NODE=8 \
#       bash yamls/slurm/node.sh yamls/zephyr-7b-ultrachat.yaml
#
# LAUNCHER=composer (default) or torchrun: the same run by either.

set -euo pipefail

: "${SLURM_NNODES:?number of nodes}" "${SLURM_NODEID:?number of this node, from 0}"
: "${MASTER_ADDR:?name or address of node 0}" "${MASTER_PORT:?a free port on node 0}"
: "${GPUS_PER_NODE:?processes to start on each node}"

if [ -d .venv/bin ]; then
    PATH="$PWD/.venv/bin:$PATH"
fi

# LLM Foundry's ranks wait for each other by files in the working directory, named alike on all
# nodes: in a folder that the nodes share, one node removes the file that another one waits for. So
# each node works in a folder of its own, with links to everything that lies here.
# Slurm sends a step's signals to this shell and to the launcher too. Only ranks know what to do with
# SIGUSR1 (save_on_signal); at the others the launcher ends them, and this shell waits for it.
trap '' USR1 USR2
trap : TERM INT

mkdir -p runs
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
ln -s "$PWD"/* "$scratch"/
cd "$scratch"

case "${LAUNCHER:-composer}" in
    composer)
        # base_rank follows from node_rank when all nodes have the same number of processes.
        composer \
            --nproc "$GPUS_PER_NODE" \
            --world_size "$((SLURM_NNODES * GPUS_PER_NODE))" \
            --node_rank "$SLURM_NODEID" \
            --master_addr "$MASTER_ADDR" \
            --master_port "$MASTER_PORT" \
            -m spin_composer.train "$@"
        ;;
    torchrun)
        # Composer asks for NODE_RANK, which torchrun does not set.
        export NODE_RANK="$SLURM_NODEID"
        torchrun \
            --nnodes "$SLURM_NNODES" \
            --nproc-per-node "$GPUS_PER_NODE" \
            --node-rank "$SLURM_NODEID" \
            --master-addr "$MASTER_ADDR" \
            --master-port "$MASTER_PORT" \
            -m spin_composer.train "$@"
        ;;
    *)
        echo "LAUNCHER must be composer or torchrun, got $LAUNCHER" >&2
        exit 2
        ;;
esac
