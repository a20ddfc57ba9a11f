"""MLflow's server over the record of one root, for this machine only. Its first page is the newest sweep.

MLflow opens on a page about agents and traces, with an assistant beside it. Both are choices that a browser keeps; a script in the
first page makes them where the reader has not, and goes to the newest sweep where the address names no page.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from lit_long.tracking.mlflow import SWEEP
from lit_long.tracking.mlflow_store import default_uri, import_mlflow
from lit_long.tracking.mlflow_view import VIEW_TAG, page

CHOICES = {"mlflow.workflowType_v1": "machine_learning", "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True}
SCRIPT = """<script>
try { for (const [key, value] of Object.entries(%s)) if (localStorage.getItem(key) === null) localStorage.setItem(key, JSON.stringify(value)) } catch {}
if (/^#?\\/?$/.test(location.hash)) history.replaceState(null, "", %s)
</script>"""


def serve(root: Path, host: str, port: int) -> None:
    """Answer until stopped. What `mlflow server --workers 1` does, in one process: its command line and its worker would both import for seconds."""
    uri, artifacts = default_uri(root), (root / "mlflow" / "artifacts").resolve().as_uri()
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    try:
        import uvicorn  # first: MLflow guards against foreign pages where a server is loaded
        from mlflow.server import constants

        os.environ |= {
            constants.BACKEND_STORE_URI_ENV_VAR: uri,
            constants.REGISTRY_STORE_URI_ENV_VAR: uri,
            constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
            constants.ARTIFACTS_DESTINATION_ENV_VAR: artifacts,
            constants.SERVE_ARTIFACTS_ENV_VAR: "true",
        }
        from mlflow.server import app as pages
        from mlflow.server.fastapi_app import app
    except (ImportError, AttributeError):  # an MLflow that tells its worker in other words
        where = ["--host", host, "--port", str(port), "--workers", "1"]
        os.execvp("mlflow", ["mlflow", "server", *where, "--backend-store-uri", uri, "--artifacts-destination", artifacts])
    open_on_the_newest_sweep(pages, uri)
    uvicorn.run(app, host=host, port=port, log_level="warning")


def open_on_the_newest_sweep(pages: Any, uri: str) -> None:
    """Put the script into the first page of MLflow's Flask application; where there is no such page, all stays as it is."""
    index = Path(pages.static_folder or "") / "index.html"
    if "serve" not in pages.view_functions or not index.is_file():
        return

    def first_page() -> Any:
        script = SCRIPT % tuple(json.dumps(value).replace("<", "\\u003c") for value in (CHOICES, newest(uri)))
        text = index.read_text(encoding="utf-8").replace("<head>", f"<head>{script}", 1)
        return pages.response_class(text, mimetype="text/html", headers={"Cache-Control": "no-store"})

    pages.view_functions["serve"] = first_page


def newest(uri: str) -> str:
    """Page of the sweep that was begun last; of MLflow's beginning where there is none."""
    client = import_mlflow().MlflowClient(tracking_uri=uri)
    experiments = {one.experiment_id: one for one in client.search_experiments()}
    order = ["attributes.start_time DESC"]
    runs = client.search_runs(list(experiments), f"tags.`{SWEEP}` != ''", order_by=order, max_results=1)
    return sweep_page(experiments[runs[0].info.experiment_id], runs[0].data.tags[SWEEP]) if runs else "#/"


def sweep_page(experiment: Any, key: str) -> str:
    """Page of sweep ``key``, in its view if one was kept."""
    return page(experiment.experiment_id, key if VIEW_TAG + key in experiment.tags else "")


def main() -> None:
    root, host, port = sys.argv[1:]
    serve(Path(root), host, int(port))


if __name__ == "__main__":
    main()
