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
        "task_resume": "POST /v1/tasks/{task_id}/resume",
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
        "run_start": "POST /v1/runs",
        "run_get": "GET /v1/runs/{task_id}",
        "run_list": "GET /v1/runs",
        "run_output": "GET /v1/runs/{task_id}/output",
        "run_diff": "GET /v1/runs/{task_id}/diff",
        "artifact_list": "GET /v1/runs/{task_id}/artifacts",
        "artifact_get": "GET /v1/runs/{task_id}/artifacts/content",
        "artifact_register": "POST /v1/artifacts",
        "artifact_trees": "GET /v1/artifacts",
        "artifact_show": "GET /v1/artifacts/{artifact_id}",
        "artifact_diff": "GET /v1/artifacts/{artifact_id}/diff",
        "artifact_remove": "DELETE /v1/artifacts/{artifact_id}",
        "run_approve": "POST /v1/runs/{task_id}/approve",
        "run_reject": "POST /v1/runs/{task_id}/reject",
        "run_merge": "POST /v1/runs/{task_id}/merge",
        "merge_resolve": "POST /v1/runs/{task_id}/resolve",
        "repo_add": "POST /v1/repos",
        "repo_update": "PATCH /v1/repos/{repo}",
        "repo_get": "GET /v1/repos/{repo}",
        "repo_list": "GET /v1/repos",
        "repo_remove": "DELETE /v1/repos/{repo}",
        "plan_tasks": "POST /v1/plans",
        "plan_submit": "POST /v1/plans/submit",
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
        "machine_define": "POST /v1/machines",
        "machine_get": "GET /v1/machines/{machine}",
        "machine_list": "GET /v1/machines",
        "machine_start": "POST /v1/machines/{machine}/start",
        "machine_stop": "POST /v1/machines/{machine}/stop",
        "machine_kill": "POST /v1/machines/{machine}/kill",
        "machine_pause": "POST /v1/machines/{machine}/pause",
        "machine_resume": "POST /v1/machines/{machine}/resume",
        "machine_delete": "DELETE /v1/machines/{machine}",
        "machine_usage": "GET /v1/machines/{machine}/usage",
        "machine_console": "GET /v1/machines/{machine}/console",
        "machine_run": "POST /v1/seeded-runs",
        "machine_exec": "POST /v1/machines/{machine}/exec",
        "exec_wait": "GET /v1/execs/{exec_id}/wait",
        "exec_output": "GET /v1/execs/{exec_id}/output",
        "exec_input": "POST /v1/execs/{exec_id}/input",
        "exec_signal": "POST /v1/execs/{exec_id}/signal",
        "exec_list": "GET /v1/execs",
        "file_put": "PUT /v1/machines/{machine}/files",
        "file_get": "GET /v1/machines/{machine}/files",
        "kernel_log_mark": "POST /v1/machines/{machine}/kernel-log/marks",
        "kernel_log_collect": "GET /v1/machines/{machine}/kernel-log",
        "kernel_log_events": "POST /v1/clusters/{cluster}/kernel-log/events",
        "agent_spawn": "POST /v1/agents",
        "agent_get": "GET /v1/agents/{agent}",
        "agent_list": "GET /v1/agents",
        "agent_send": "POST /v1/agents/{agent}/messages",
        "agent_send_many": "POST /v1/agents/messages",
        "agent_tree": "GET /v1/agent-tree",
        "agent_children": "GET /v1/agents/{agent}/children",
        "agent_peers": "GET /v1/agents/{agent}/peers",
        "agent_branch": "POST /v1/agents/{agent}/branch",
        "agent_budget": "POST /v1/agents/{agent}/budget",
        "agent_wait": "GET /v1/agents/messages/{message_id}/wait",
        "agent_output": "GET /v1/agents/{agent}/messages",
        "agent_interrupt": "POST /v1/agents/{agent}/interrupt",
        "agent_suspend": "POST /v1/agents/{agent}/suspend",
        "agent_end": "POST /v1/agents/{agent}/end",
        "agent_delete": "DELETE /v1/agents/{agent}",
        "snapshot_create": "POST /v1/machines/{machine}/snapshots",
        "snapshot_get": "GET /v1/snapshots/{snapshot_id}",
        "snapshot_list": "GET /v1/snapshots",
        "snapshot_verify": "POST /v1/snapshots/{snapshot_id}/verify",
        "snapshot_delete": "DELETE /v1/snapshots/{snapshot_id}",
        "machine_branch": "POST /v1/branches",
        "image_build": "POST /v1/images",
        "image_add": "POST /v1/images/runners",
        "image_list": "GET /v1/images",
        "image_get": "GET /v1/images/{image}",
        "image_verify": "GET /v1/images/{image}/verify",
        "image_remove": "DELETE /v1/images/{image}",
        "pool_list": "GET /v1/pools",
        "forward_add": "POST /v1/machines/{machine}/forwards",
        "forward_list": "GET /v1/forwards",
        "forward_remove": "DELETE /v1/forwards/{forward_id}",
        "network_create": "POST /v1/networks",
        "network_get": "GET /v1/networks/{network}",
        "network_list": "GET /v1/networks",
        "network_remove": "DELETE /v1/networks/{network}",
        "fault_inject": "POST /v1/faults",
        "fault_get": "GET /v1/faults/{fault_id}",
        "fault_list": "GET /v1/faults",
        "fault_renew": "POST /v1/faults/{fault_id}/renew",
        "fault_heal": "POST /v1/faults/{fault_id}/heal",
        "fault_heal_all": "POST /v1/faults/heal",
        "fault_campaign": "POST /v1/campaigns",
        "fault_campaign_get": "GET /v1/campaigns/{campaign_id}",
        "fault_campaign_list": "GET /v1/campaigns",
        "fault_campaign_cancel": "POST /v1/campaigns/{campaign_id}/cancel",
        "cluster_define": "POST /v1/clusters",
        "cluster_schema": "GET /v1/topology-schema",
        "cluster_list": "GET /v1/clusters",
        "cluster_status": "GET /v1/clusters/{cluster}",
        "cluster_handle": "GET /v1/clusters/{cluster}/handle",
        "cluster_start": "POST /v1/clusters/{cluster}/start",
        "cluster_stop": "POST /v1/clusters/{cluster}/stop",
        "cluster_destroy": "POST /v1/clusters/{cluster}/destroy",
        "node_exec": "POST /v1/clusters/{cluster}/nodes/{node}/exec",
        "node_exec_all": "POST /v1/clusters/{cluster}/exec",
        "node_crash": "POST /v1/clusters/{cluster}/nodes/{node}/crash",
        "node_source_sync": "POST /v1/clusters/{cluster}/nodes/{node}/source",
        "node_source_build": "POST /v1/clusters/{cluster}/nodes/{node}/build",
        "cluster_artifact_sync": "POST /v1/clusters/{cluster}/artifacts/{artifact_id}/sync",
        "cluster_artifact_install": "POST /v1/clusters/{cluster}/artifacts/{artifact_id}/install",
        "cluster_snapshot_create": "POST /v1/clusters/{cluster}/snapshots",
        "cluster_snapshot_list": "GET /v1/clusters/{cluster}/snapshots",
        "cluster_snapshot_revert": "POST /v1/clusters/{cluster}/snapshots/{snapshot}/revert",
        "cluster_snapshot_delete": "DELETE /v1/clusters/{cluster}/snapshots/{snapshot}",
        "cluster_snapshot_branch": "POST /v1/clusters/{cluster}/snapshots/{snapshot}/branch",
        "slot_list": "GET /v1/slots",
        "cache_list": "GET /v1/caches",
        "cache_remove": "DELETE /v1/caches/{domain}",
        "operation_get": "GET /v1/operations/{operation_id}",
        "operation_wait": "GET /v1/operations/{operation_id}/wait",
        "operation_list": "GET /v1/operations",
        "operation_cancel": "POST /v1/operations/{operation_id}/cancel",
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
        "credential_set": "PUT /v1/credentials/{name}",
        "credential_list": "GET /v1/credentials",
        "credential_remove": "DELETE /v1/credentials/{name}",
        "whoami": "GET /v1/whoami",
        "metrics_get": "GET /v1/metrics",
        "doctor_run": "GET /v1/doctor",
        "backup_create": "POST /v1/backups",
    }.items()
}

# Asked with a body, and yet only a question.
QUESTIONS = frozenset({"template_preview", "plan_tasks"})


def changes(name: str) -> bool:
    """Tell whether a call may change something, so that its loss matters."""
    return ROUTES[name].method != "GET" and name not in QUESTIONS
