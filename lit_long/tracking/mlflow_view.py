"""The first page of a sweep in MLflow: its runs with the numbers that matter as columns, the best first.

MLflow's pages keep a view that is to be shared as a tag of the experiment, ``mlflow.sharedViewState.KEY``, and open it with
``viewStateShareKey=KEY`` in the address. A tag's value is JSON of what the address and the list of runs know by themselves. Runs that
are sorted by a metric are listed flat, children beside their parent. An MLflow that knows no shared views shows the plain list.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

from lit_long.tracking.tracker import MEMBER

VIEW_TAG = "mlflow.sharedViewState."
MOST = 5  # columns that a laptop's screen has room for beside the names
NAME = "attributes.`Run Name`"
PLAIN: dict[
    str, Any
] = {  # what the list of runs starts with; MLflow 3.13 takes a shared view as it is, and breaks where one of these is missing
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "modelVersionFilter": "All Runs",
    "datasetsFilter": [],
    "runsExpanded": {},
    "runsPinned": [],
    "runsHidden": [],
    "runsVisibilityMap": {},
    "runsHiddenMode": "FIRST_10_RUNS",
    "viewMaximized": False,
    "runListHidden": False,
    "isAccordionReordered": False,
    "autoRefreshEnabled": True,
    "groupBy": None,
    "groupsExpanded": {},
    "useGroupedValuesInCharts": True,
    "hideEmptyCharts": True,
    "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
}


def columns(names: Iterable[str]) -> list[str]:
    """Of the metrics ``eval/METRIC/DOMAIN/LENGTH``: perplexity at the longest and the shortest length and retrieval at the longest, in the
    first domain of each, then in the others. Where none of these was measured: what was measured at the longest length.
    """
    lengths: dict[tuple[str, str], list[int]] = {}
    for name in names:
        kind, _, rest = name.partition("/")
        words = rest.rsplit("/", 1)
        if kind == "eval" and len(words) == 2 and "/" in words[0] and words[1].isdigit():
            metric, _, domain = words[0].partition("/")
            lengths.setdefault((metric, domain), []).append(int(words[1]))

    def of(*metrics: str, both: bool = False) -> list[list[str]]:
        return [
            [f"eval/{metric}/{domain}/{length}" for length in dict.fromkeys([max(found), *([min(found)] if both else [])])]
            for (metric, domain), found in lengths.items()
            if metric in metrics or not metrics
        ]

    perplexity, retrieval = of("perplexity", both=True), of("retrieval_rouge_l") or of("retrieval_accuracy")
    chosen = [*perplexity[:1], *retrieval[:1], *perplexity[1:], *retrieval[1:]] or of()
    return [name for some in chosen for name in some][:MOST]


def view_state(key: str, names: Iterable[str]) -> str:
    """Value of the tag for sweep ``key``, whose runs hold the metrics ``names``."""
    shown = [f"metrics.`{name}`" for name in columns(names)]
    # In pixels: what fits a window of 1280 together; letters are 5.8 wide, and the sorted column has a mark.
    widths = {NAME: 240, "runDateAndNestInfo": 130}
    widths |= {column: 24 + 58 * len(column[len("metrics.`") : -1]) // 10 + 22 * (column == shown[0]) for column in shown}
    state = PLAIN | {
        "searchFilter": f"tags.`{MEMBER}` = '{key}'",
        "orderByKey": shown[0] if shown else "tags.`mlflow.runName`",
        "orderByAsc": not shown or any(word in shown[0] for word in ("perplexity", "loss")),
        "selectedColumns": shown,
        "columnOrder": list(widths),
        "columnWidths": widths,
    }
    return json.dumps(state)


def page(experiment_id: str, key: str = "") -> str:
    """The part of the address behind the server's: the experiment's runs, in the view of sweep ``key``."""
    view = {"viewStateShareKey": key} if key else {}
    return f"#/experiments/{experiment_id}/runs?{urlencode({'workflowType': 'machine_learning'} | view)}"
