"""Every error a caller can meet, as one tree.

    OrchestratorError
    ├── InvalidInput          the request can never work as written
    │   ├── ConfigInvalid
    │   ├── CycleFound
    │   ├── CursorInvalid
    │   ├── TemplateInvalid
    │   ├── TargetRefused
    │   ├── PackageUnknown
    │   ├── DevshellMissing
    │   ├── RepoRefused       a repository is not one that we can work with
    │   ├── NotOffered        a machine of this kind, or the way into it, does not do that
    │   └── FaultNotOffered   networks of this kind cannot do that here
    ├── TooLarge              a limit on size or count was passed
    ├── Unauthenticated       we do not know who asks
    ├── Denied                we know, and the answer is no
    ├── NotFound              nothing of that name is visible to this caller
    │   └── CursorExpired
    ├── Conflict              the state of things forbids it now
    │   ├── AlreadyExists
    │   ├── KeyReused
    │   ├── StateForbids
    │   ├── LeaseLost
    │   ├── HasDependents
    │   ├── VersionMoved
    │   └── GuestRefused
    └── Unavailable           try again later; nothing was changed
        ├── StoreFull
        ├── StoreReadOnly
        ├── StoreCorrupt
        ├── SchemaTooNew
        ├── AlreadyRunning
        ├── Stopping
        ├── NoRoom            every place for a machine is taken
        ├── CommandFailed     a program of this host ended badly
        ├── FaultUnverified   a fault, or its end, was not seen where it has to be
        ├── MachineFailed     a machine did not do what was asked
        │   ├── MachineBootFailed
        │   ├── MachineUnreachable
        │   ├── HostKeyWrong  somebody else answers in its place
        │   ├── ProtocolBroken
        │   ├── BundleRefused  the commits a guest sent may not enter
        │   ├── MachineCrashed
        │   ├── MachineLost
        │   ├── SnapshotDamaged
        │   └── NodesFailed   some nodes of a cluster did not; the others are kept
        ├── CoordinationFailed  agents did not come to an end together; what each did is kept
        ├── PackageRefused    what was fetched is not what it should be
        ├── ImageDamaged      an image is no longer what it was built as
        └── UnknownOutcome    the one exception: it may have happened

A class has a stable `code`; a raised error names the object and the limit in its sentence and
may add a `hint`, the next step. The five inner classes are what front ends translate by.
"""

from __future__ import annotations

from typing import ClassVar


class OrchestratorError(Exception):
    """Something this program knows how to explain."""

    code: ClassVar[str] = "internal-error"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class InvalidInput(OrchestratorError):
    """The request can never work as it is written."""

    code = "invalid-input"


class ConfigInvalid(InvalidInput):
    """A setting is unknown, of the wrong type or out of range."""

    code = "config-invalid"


class CycleFound(InvalidInput):
    """The dependencies asked for would wait for each other for ever."""

    code = "cycle-found"


class CursorInvalid(InvalidInput):
    """The cursor was not made by this store."""

    code = "cursor-invalid"


class TemplateInvalid(InvalidInput):
    """A template, or the arguments given to it, do not fit its parameters."""

    code = "template-invalid"


class TargetRefused(InvalidInput):
    """A webhook names an address this host does not deliver to."""

    code = "target-refused"


class PackageUnknown(InvalidInput):
    """No configured source has a package of that name, or not all that it depends on."""

    code = "package-unknown"


class RepoRefused(InvalidInput):
    """There is no repository there, or not one of a kind that we can work with."""

    code = "repo-refused"


class DevshellMissing(InvalidInput):
    """A development shell is required, and the repository or the image has not what it takes."""

    code = "devshell-missing"


class NotOffered(InvalidInput):
    """This kind of machine, or the way into it, does not offer that; another one may."""

    code = "not-offered"


class FaultNotOffered(InvalidInput):
    """Networks of this kind cannot do that on this host; another kind may."""

    code = "fault-not-offered"


class TooLarge(OrchestratorError):
    """The request passes a limit on size or count."""

    code = "too-large"


class Unauthenticated(OrchestratorError):
    """The token is missing, unknown, expired or revoked."""

    code = "unauthenticated"


class Denied(OrchestratorError):
    """The caller's role or scope does not reach this far."""

    code = "denied"


class NotFound(OrchestratorError):
    """Nothing of that name exists where this caller can see it."""

    code = "not-found"


class CursorExpired(NotFound):
    """The journal no longer holds the events behind this cursor."""

    code = "cursor-expired"


class Conflict(OrchestratorError):
    """The present state of things forbids it."""

    code = "conflict"


class AlreadyExists(Conflict):
    """The name is taken."""

    code = "already-exists"


class KeyReused(Conflict):
    """An idempotency key came back with another request."""

    code = "key-reused"


class StateForbids(Conflict):
    """The object's state does not allow this verb."""

    code = "state-forbids"


class LeaseLost(Conflict):
    """The fencing token is not the current one: somebody else may hold the task now."""

    code = "lease-lost"


class HasDependents(Conflict):
    """Others depend on the object."""

    code = "has-dependents"


class VersionMoved(Conflict):
    """The record changed since it was read."""

    code = "version-moved"


class GuestRefused(Conflict):
    """The guest could not, or would not, do what was asked; it says why."""

    code = "guest-refused"


class Unavailable(OrchestratorError):
    """The service cannot do this now; nothing was changed."""

    code = "unavailable"


class StoreFull(Unavailable):
    """The disk under the store is full."""

    code = "store-full"


class StoreReadOnly(Unavailable):
    """The store cannot be written."""

    code = "store-read-only"


class StoreCorrupt(Unavailable):
    """The store's file is damaged or is no database."""

    code = "store-corrupt"


class SchemaTooNew(Unavailable):
    """A newer release wrote this store."""

    code = "schema-too-new"


class AlreadyRunning(Unavailable):
    """Another daemon holds this state directory or socket."""

    code = "already-running"


class Stopping(Unavailable):
    """The daemon is going down."""

    code = "stopping"


class NoRoom(Unavailable):
    """Every place for a machine on this host is taken."""

    code = "no-room"


class CommandFailed(Unavailable):
    """A program that this host runs for us could not be started, took too long or failed."""

    code = "command-failed"

    def __init__(
        self,
        message: str,
        *,
        argv: tuple[str, ...],
        status: int | None = None,
        stdout: str = "",
        stderr: str = "",
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.argv = argv
        # None when there is none: it did not start, or was stopped.
        self.status = status
        self.stdout = stdout
        self.stderr = stderr


class FaultUnverified(Unavailable):
    """What was broken or healed was looked for where it has to be, and is not so."""

    code = "fault-unverified"


class MachineFailed(Unavailable):
    """A machine did not do what was asked of it."""

    code = "machine-failed"


class MachineBootFailed(MachineFailed):
    """A machine ended, or did not answer, before it was ready; nothing of it is left."""

    code = "machine-boot-failed"

    def __init__(self, message: str, *, console: str = "", hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        # The end of what the guest wrote to its console.
        self.console = console


class MachineUnreachable(MachineFailed):
    """A machine runs, but does not answer."""

    code = "machine-unreachable"


class ExecNotBegun(MachineUnreachable):
    """A command was sent to a machine and never started there; it can be sent again."""

    code = "exec-not-begun"


class HostKeyWrong(MachineFailed):
    """Whoever answers for a machine has another SSH host key; nothing was said to it."""

    code = "host-key-wrong"


class ProtocolBroken(MachineFailed):
    """A guest said something that its protocol does not allow; nothing it says is believed now."""

    code = "protocol-broken"


class BundleRefused(MachineFailed):
    """The commits a guest sent are damaged, too large or unsafe; nothing of them was kept."""

    code = "bundle-refused"


class MachineCrashed(MachineFailed):
    """A machine ended while something was asked of it."""

    code = "machine-crashed"


class MachineLost(MachineFailed):
    """A machine that an earlier daemon started does not run any more."""

    code = "machine-lost"


class SnapshotDamaged(MachineFailed):
    """The files of a snapshot are not those that were saved."""

    code = "snapshot-damaged"


class NodesFailed(MachineFailed):
    """Some nodes of a cluster did not do what was asked; it names them, and what is left."""

    code = "nodes-failed"


class CoordinationFailed(Unavailable):
    """Agents that were coordinated came to no result; each step says what became of it."""

    code = "coordination-failed"


class PackageRefused(Unavailable):
    """A fetched package is damaged, is not the one announced, or reaches outside its tree."""

    code = "package-refused"


class ImageDamaged(Unavailable):
    """An image on this host is not, or no longer, what its digest says."""

    code = "image-damaged"


class UnknownOutcome(Unavailable):
    """The connection broke after the request left: it may have happened, and was not repeated."""

    code = "unknown-outcome"
