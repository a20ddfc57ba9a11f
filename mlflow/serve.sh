#!/usr/bin/env bash
# MLflow's server. Alone, over mlflow.db and artifacts/ beside this file, for this machine only; its first page is the newest sweep:
#   PORT=5001 mlflow/serve.sh          ROOT=FOLDER: the record of sweeps that ran with root=FOLDER
# For a team, over PostgreSQL, with users and passwords, artifacts through the server (needs: pip install 'lit-long[server]'):
#   BACKEND=postgresql://mlflow@db.example.org/mlflow ADMIN_PASSWORD_FILE=~/.mlflow-admin HOST=0.0.0.0 mlflow/serve.sh
#   ARTIFACTS=s3://bucket/path   where artifacts lie (artifacts/ beside this file)      WORKERS=4
#   ALLOWED_HOSTS=mlflow.example.org:5000   names that browsers and clients call it by
# Database passwords belong in ~/.pgpass. Clients set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, and tracking.uri=http://HOST:PORT.
set -euo pipefail
unset CDPATH  # with it, cd prints where it goes

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
port="${PORT:-5000}"
host="${HOST:-127.0.0.1}"
[[ "$host" != localhost ]] || host=127.0.0.1
record="$here"
[[ -z "${ROOT:-}" ]] || record="$(cd "$ROOT" && pwd)/mlflow"
[[ -d "$here/../.venv/bin" ]] && PATH="$here/../.venv/bin:$PATH"

fail() { echo "serve.sh: $*" >&2; exit 1; }
announce() { echo "MLflow: http://$host:$port  (ready in some seconds; Ctrl-C stops it)"; }
[[ "$port" =~ ^[0-9]+$ ]] || fail "PORT must be a number, not '$port'."
command -v mlflow >/dev/null || fail "no mlflow command. Install the project (make sweep does), or activate its environment."
if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    fail "port $port is in use, perhaps by another serve.sh. Choose another:  PORT=$((port + 1)) $0"
fi

cd "$here"
export MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
if [[ -z "${BACKEND:-}" ]]; then
    [[ "$host" == 127.0.0.1 ]] || fail "without users and passwords it serves this machine only; set BACKEND for a team's server."
    [[ -f "$record/mlflow.db" ]] || fail "nothing recorded yet: $record/mlflow.db does not exist.
Run an experiment first:  python -m lit_long.sweep experiment=position_tiny"
    announce
    exec python -W "ignore:starlette.middleware.wsgi is deprecated" -m lit_long.tracking.mlflow_server "$(dirname "$record")" "$host" "$port"
else
    [[ -n "${ADMIN_PASSWORD_FILE:-}" && -s "${ADMIN_PASSWORD_FILE}" ]] ||
        fail "ADMIN_PASSWORD_FILE must name a file with the password that user 'admin' has at the first start (12 characters or more)."
    python -c 'import flask_wtf, psycopg' 2>/dev/null || fail "a team's server needs: pip install 'lit-long[server]'"
    BACKEND="${BACKEND/#postgresql:/postgresql+psycopg:}"  # the driver, which SQLAlchemy's versions choose differently
    settings="$(mktemp)"  # readable by this user only
    trap 'rm -f "$settings"' EXIT
    python - "$settings" "$BACKEND" "$ADMIN_PASSWORD_FILE" <<'PYTHON'
import configparser, pathlib, sys

file, backend, password = sys.argv[1:]
settings = configparser.RawConfigParser()
settings["mlflow"] = {
    "default_permission": "READ",
    "database_uri": backend,
    "admin_username": "admin",
    "admin_password": pathlib.Path(password).read_text().strip(),
    "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
}
with open(file, "w") as out:
    settings.write(out)
PYTHON
    export MLFLOW_AUTH_CONFIG_PATH="$settings"
    MLFLOW_FLASK_SERVER_SECRET_KEY="${MLFLOW_FLASK_SERVER_SECRET_KEY:-$(python -c 'import secrets; print(secrets.token_hex(32))')}"
    export MLFLOW_FLASK_SERVER_SECRET_KEY
    options=(--host "$host" --port "$port" --workers "${WORKERS:-2}" --backend-store-uri "$BACKEND" --app-name basic-auth)
    options+=(--artifacts-destination "${ARTIFACTS:-$here/artifacts}")
    [[ -z "${ALLOWED_HOSTS:-}" ]] || options+=(--allowed-hosts "$ALLOWED_HOSTS")
fi

announce
mlflow server "${options[@]}" &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server"; rm -f "$settings"' INT TERM EXIT
wait "$server"
