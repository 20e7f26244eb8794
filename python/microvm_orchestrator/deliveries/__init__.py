"""Events go out: webhooks read the journal and their receivers are sent what they asked for.

`deliver` runs in the daemon beside the service, which only writes down webhooks and wishes; the
store is all they share. Above sit the service and the daemon; below, the journal and the store.
"""

from __future__ import annotations

from microvm_orchestrator.deliveries.deliver import deliver

__all__ = ["deliver"]
