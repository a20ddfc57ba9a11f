#!/usr/bin/env bash
# Show the record in a browser: MLflow's server over mlflow.db and artifacts/ beside this file. PORT=5001 mlflow/serve.sh
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
port="${PORT:-5000}"
[[ -d "$here/../.venv/bin" ]] && PATH="$here/../.venv/bin:$PATH"

fail() { echo "serve.sh: $*" >&2; exit 1; }
[[ "$port" =~ ^[0-9]+$ ]] || fail "PORT must be a number, not '$port'."
command -v mlflow >/dev/null || fail "no mlflow command. Install the project (make sweep does), or activate its environment."
[[ -f "$here/mlflow.db" ]] || fail "nothing recorded yet: $here/mlflow.db does not exist.
Run an experiment first:  python -m lit_long.sweep experiment=position_tiny"
if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    fail "port $port is in use, perhaps by another serve.sh. Choose another:  PORT=$((port + 1)) $0"
fi

echo "MLflow: http://127.0.0.1:$port  (ready in some seconds; Ctrl-C stops it)"
cd "$here"
export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
exec mlflow server --host 127.0.0.1 --port "$port" --workers 1 \
    --backend-store-uri "sqlite:///$here/mlflow.db" --artifacts-destination "$here/artifacts"
