"""The calls of the daemon and where each lives in its REST interface.

The command line knows the daemon by its socket only, so the addresses stand here once more; a test
holds them against the daemon's own table. Above sits the client.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PARAMETER = re.compile(r"{(\w+)}")


@dataclass(frozen=True, slots=True)
class Route:
    """One call's method and path."""

    method: str
    path: str

    @property
    def parameters(self) -> list[str]:
        return _PARAMETER.findall(self.path)

    @property
    def has_body(self) -> bool:
        return self.method not in {"GET", "DELETE"}


ROUTES: dict[str, Route] = {
    name: Route(*http.split())
    for name, http in {
        "task_submit": "POST /v1/tasks",
        "graph_submit": "POST /v1/graphs",
        "task_get": "GET /v1/tasks/{task_id}",
        "task_list": "GET /v1/tasks",
        "task_wait": "GET /v1/tasks/{task_id}/wait",
        "task_history": "GET /v1/tasks/{task_id}/history",
        "task_runs": "GET /v1/tasks/{task_id}/runs",
        "task_cancel": "POST /v1/tasks/{task_id}/cancel",
        "task_retry": "POST /v1/tasks/{task_id}/retry",
        "task_update": "PATCH /v1/tasks/{task_id}",
        "task_delete": "DELETE /v1/tasks/{task_id}",
        "task_extend": "POST /v1/tasks/{task_id}/extend",
        "task_claim": "POST /v1/tasks/claim",
        "task_heartbeat": "POST /v1/tasks/{task_id}/heartbeat",
        "task_complete": "POST /v1/tasks/{task_id}/complete",
        "task_fail": "POST /v1/tasks/{task_id}/fail",
        "task_release": "POST /v1/tasks/{task_id}/release",
        "group_list": "GET /v1/groups",
        "group_get": "GET /v1/groups/{group}",
        "group_tasks": "GET /v1/groups/{group}/tasks",
        "group_report": "GET /v1/groups/{group}/report",
        "group_cancel": "POST /v1/groups/{group}/cancel",
        "group_retry": "POST /v1/groups/{group}/retry",
        "group_prioritize": "POST /v1/groups/{group}/prioritize",
        "template_save": "POST /v1/templates",
        "template_get": "GET /v1/templates/{name}",
        "template_list": "GET /v1/templates",
        "template_delete": "DELETE /v1/templates/{name}",
        "template_preview": "POST /v1/templates/{name}/preview",
        "template_run": "POST /v1/templates/{name}/run",
        "worker_register": "POST /v1/workers",
        "worker_heartbeat": "POST /v1/workers/heartbeat",
        "worker_get": "GET /v1/workers/{worker}",
        "worker_list": "GET /v1/workers",
        "worker_drain": "POST /v1/workers/{worker}/drain",
        "worker_remove": "DELETE /v1/workers/{worker}",
        "event_wait": "GET /v1/events",
        "audit_list": "GET /v1/audit",
        "webhook_create": "POST /v1/webhooks",
        "webhook_get": "GET /v1/webhooks/{webhook_id}",
        "webhook_list": "GET /v1/webhooks",
        "webhook_update": "PATCH /v1/webhooks/{webhook_id}",
        "webhook_delete": "DELETE /v1/webhooks/{webhook_id}",
        "webhook_test": "POST /v1/webhooks/{webhook_id}/test",
        "delivery_list": "GET /v1/deliveries",
        "delivery_retry": "POST /v1/deliveries/{delivery_id}/retry",
        "token_create": "POST /v1/tokens",
        "token_list": "GET /v1/tokens",
        "token_revoke": "DELETE /v1/tokens/{token_id}",
        "whoami": "GET /v1/whoami",
        "metrics_get": "GET /v1/metrics",
        "doctor_run": "GET /v1/doctor",
        "backup_create": "POST /v1/backups",
    }.items()
}

# Asked with a body, and yet only a question.
QUESTIONS = frozenset({"template_preview"})


def changes(name: str) -> bool:
    """Tell whether a call may change something, so that its loss matters."""
    return ROUTES[name].method != "GET" and name not in QUESTIONS
