"""The least role of each call, and what a call needs beside the name of what it is about."""

from __future__ import annotations

from typing import Any

from microvm_orchestrator.model.access import Role

# The least role of each call, written down a second time so that none is lowered by a slip.
LEAST = {
    Role.VIEWER: """
        task_get task_list task_wait task_history task_runs group_list group_get group_tasks
        group_report template_get template_list template_preview worker_get worker_list event_wait
        machine_get machine_list machine_usage machine_console snapshot_get snapshot_list
        kernel_log_collect exec_wait exec_output exec_list slot_list cache_list forward_list
        network_get network_list fault_get fault_list
        fault_campaign_get fault_campaign_list
        cluster_schema cluster_list cluster_status cluster_handle
        cluster_snapshot_list plan_tasks repo_get repo_list run_get run_list
        run_output run_diff artifact_list artifact_get artifact_trees artifact_show artifact_diff
        image_list image_get pool_list operation_get operation_wait operation_list
        agent_get agent_list agent_tree agent_children agent_peers agent_wait agent_output
        agent_follow agent_metrics agent_inbox agent_health
        role_list role_get team_list team_get coordination_get coordination_list
        whoami metrics_get""",
    Role.WORKER: """
        task_claim task_heartbeat task_complete task_fail task_release task_extend worker_register
        worker_heartbeat""",
    Role.OPERATOR: """
        task_submit graph_submit task_cancel task_retry task_resume task_update task_delete
        group_cancel
        group_retry group_prioritize template_save template_delete template_run worker_drain
        worker_remove webhook_create webhook_get webhook_list webhook_update webhook_delete
        webhook_test delivery_list delivery_retry token_create token_list token_revoke
        machine_define machine_start machine_stop machine_kill machine_pause machine_resume
        kernel_log_mark kernel_log_events machine_run machine_exec exec_input exec_signal
        file_put file_get
        machine_delete machine_branch snapshot_create snapshot_verify snapshot_delete
        image_build image_verify image_remove operation_cancel cache_remove doctor_run
        cluster_define cluster_start cluster_stop cluster_destroy node_exec node_exec_all node_crash
        cluster_snapshot_create cluster_snapshot_revert cluster_snapshot_delete
        cluster_snapshot_branch cluster_artifact_sync cluster_artifact_install node_source_build
        forward_add forward_remove network_create network_remove fault_inject fault_renew
        fault_heal fault_heal_all fault_campaign fault_campaign_cancel plan_submit run_start
        run_approve run_reject run_merge merge_resolve
        agent_spawn agent_send agent_send_many agent_reply agent_branch agent_budget
        agent_interrupt agent_suspend agent_resume agent_end agent_collect agent_supervise
        team_spawn team_coordinate
        agent_delete agent_file_list agent_file_get agent_file_put""",
    Role.ADMIN: """
        audit_list backup_create image_add credential_set credential_list credential_remove
        repo_add repo_update repo_remove artifact_register artifact_remove
        node_source_sync""",
}

# Requests that name nothing red may know of, beside the one that does.
BESIDE: dict[str, dict[str, Any]] = {
    "machine_exec": {"argv": ["true"]},
    "file_put": {"path": "/tmp/x", "content": "x"},
    "file_get": {"path": "/tmp/x"},
    "agent_file_put": {"path": "/tmp/x", "content": "x"},
    "agent_file_get": {"path": "/tmp/x"},
    "forward_add": {"guest": "80"},
    "agent_send": {"text": "x"},
    "agent_reply": {"text": "x"},
    "agent_send_many": {"text": "x"},
    "exec_input": {"data": "x"},
    "node_exec": {"node": "one", "argv": ["true"]},
    "node_exec_all": {"argv": ["true"]},
    "node_crash": {"node": "one"},
    "cluster_snapshot_create": {"snapshot": "s"},
    "cluster_snapshot_revert": {"snapshot": "s"},
    "cluster_snapshot_delete": {"snapshot": "s"},
    "cluster_snapshot_branch": {"snapshot": "s", "name": "copy"},
    "exec_signal": {"signal": "KILL"},
    "artifact_diff": {"other": "0f" * 32},
    "cluster_artifact_sync": {"cluster": "x", "artifact_id": "0f" * 32},
    "cluster_artifact_install": {"cluster": "x", "artifact_id": "0f" * 32},
    "node_source_sync": {"node": "one", "local_path": "/tmp", "remote_path": "/tmp/x"},
    "node_source_build": {"node": "one", "path": "/tmp/x", "command": "true"},
}
