"""The settings of the daemon, and how they are put together once, at start.

From weakest to strongest: the defaults here, a TOML file, the environment
(`MICROVM_ORCHESTRATOR_LOG__LEVEL` is `log.level`), the command line. A key that nothing reads is an
error that names the nearest one that something does. Above stands the daemon; below, only the
errors, the roles and `places`. Settings are frozen and live as long as the process; a reload
makes new ones.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast, get_args, get_origin

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from microvm_orchestrator import places
from microvm_orchestrator.agent_settings import Agents
from microvm_orchestrator.errors import ConfigInvalid
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.values import Name
from microvm_orchestrator.setting_values import (
    DAY_S,
    Count,
    Directory,
    Dollars,
    Duration,
    MaybeCount,
    MaybeDuration,
    Section,
    SocketPath,
    base_url,
    listen_address,
    octal,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic.fields import FieldInfo

# A value that no log line, error or page shows; `.get_secret_value()` is the one way to it.
Secret = SecretStr

# Variables of our prefix that are for clients or choose the file: no settings of the daemon.
_NOT_SETTINGS = {
    places.CONFIG_VARIABLE,
    places.ADDRESS_VARIABLE,
    places.TOKEN_VARIABLE,
    places.TOKEN_FILE_VARIABLE,
}
# Clients find the daemon by this one; the daemon must not listen elsewhere when it is set.
_SHORT = {places.SOCKET_VARIABLE: "socket.path"}


class Socket(Section):
    """The unix socket that every local client uses."""

    path: SocketPath = Field(description="Where the daemon listens.")
    mode: Annotated[int, Field(strict=True, ge=0, le=0o777), BeforeValidator(octal)] = Field(
        default=0o660, description="Its permissions, in octal: who may open it may talk to us."
    )
    group: str | None = Field(
        default=None, min_length=1, description="The group that owns it; by default the daemon's."
    )


class Tcp(Section):
    """Listening on the network. Every request there needs a token."""

    listen: Annotated[str, AfterValidator(listen_address)] | None = Field(
        default=None,
        description='Address and port, as in "127.0.0.1:7070"; port 0 takes any free one. '
        "Without it nothing listens on the network.",
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(),
        description="Values of the Host header that are served beside the address itself; "
        "others are refused, which stops DNS rebinding.",
    )
    allowed_origins: tuple[str, ...] = Field(
        default=(), description="Values of the Origin header that a browser may come with."
    )
    allow_any_address: bool = Field(
        default=False,
        strict=True,
        description='Whether to listen on every address of the host, as in "0.0.0.0:7070".',
    )

    @property
    def address(self) -> tuple[str, int] | None:
        if self.listen is None:
            return None
        host, _, port = self.listen.rpartition(":")
        return host.removeprefix("[").removesuffix("]"), int(port)


class Pages(Section):
    """The web pages, which show and change nothing."""

    enabled: bool = Field(
        default=True,
        strict=True,
        description="Whether they are served, on the unix socket and on the network; there they "
        "need a token, as everything does.",
    )


class Access(Section):
    """Who may do what, when the kernel tells us who asks."""

    uid_roles: dict[int, Role] = Field(
        default_factory=dict[int, Role], description="The role of a user id on the unix socket."
    )
    gid_roles: dict[int, Role] = Field(
        default_factory=dict[int, Role],
        description="The role of a group id on the unix socket, where the user id has none; "
        "of several groups the highest role counts.",
    )
    default_role: Role = Field(
        default=Role.OPERATOR, description="The role of everyone else who can open the socket."
    )
    visibility_labels: tuple[str, ...] = Field(
        default=("project", "team"),
        description="The labels by which a token's sight of tasks can be narrowed.",
    )


class Retention(Section):
    """How long something is kept; it goes when either limit is passed."""

    max_age_s: MaybeDuration = Field(
        default=None, description='Forgotten after so many seconds; "none" is never.'
    )
    max_count: MaybeCount = Field(
        default=None, description='Only the newest so many are kept; "none" is all.'
    )


class TaskRetention(Retention):
    """How long tasks are kept once they have ended."""


class EventRetention(Retention):
    """How long the journal reaches back."""

    max_age_s: MaybeDuration = Field(
        default=30 * DAY_S, description=Retention.model_fields["max_age_s"].description
    )
    max_count: MaybeCount = Field(
        default=1_000_000, description=Retention.model_fields["max_count"].description
    )


class Store(Section):
    """What the store forgets."""

    events: EventRetention = Field(default=EventRetention(), description=EventRetention.__doc__)
    tasks: TaskRetention = Field(default=TaskRetention(), description=TaskRetention.__doc__)


class Leases(Section):
    """For how long a claim lasts without a heartbeat."""

    default_lease_s: Duration = Field(
        default=90.0, description="The length of a lease when neither task nor claim names one."
    )
    min_lease_s: Duration = Field(default=1.0, description="The shortest lease one may ask for.")
    max_lease_s: Duration = Field(default=DAY_S, description="The longest lease one may ask for.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min_lease_s <= self.default_lease_s <= self.max_lease_s:
            raise ValueError("needs min_lease_s <= default_lease_s <= max_lease_s")
        return self


class Limits(Section):
    """What one request may take."""

    max_request_bytes: Count = Field(
        default=4 * 1024 * 1024, description="The largest request, over any front end."
    )
    max_connections: Count = Field(
        default=1000,
        description="How many connections are held at once; past that, a new one takes the place "
        "of the oldest from which nothing was heard yet.",
    )
    request_timeout_s: Duration = Field(
        default=30.0,
        description="How long a client may take to send a request, counted from when it connected "
        "or was last answered, and then to take the answer.",
    )


class Webhooks(Section):
    """How events are delivered to others."""

    allow_private_targets: bool = Field(
        default=False,
        strict=True,
        description="Whether a webhook may name a loopback, link-local or private address.",
    )
    timeout_s: Duration = Field(default=10.0, description="How long one delivery may take.")
    max_attempts: Count = Field(
        default=12, description="After so many failures a delivery goes to the dead-letter list."
    )


class Machines(Section):
    """What machines may take of this host."""

    count: Count = Field(default=16, description="How many may run at once.")
    memory_mib: MaybeCount = Field(
        default=None,
        description='The memory of all that run; "none" is three quarters of what the host has.',
    )
    vcpus: MaybeCount = Field(
        default=None,
        description='The processors of all that run; "none" is four for each of the host.',
    )
    default_image: str = Field(
        default="embedded",
        min_length=1,
        description="What a machine boots when nothing is said; `embedded` is built when needed.",
    )
    default_memory_mib: Count = Field(
        default=512, description="The memory of a machine when nothing is said."
    )
    boot_timeout_s: Duration = Field(
        default=120.0,
        description="How long a machine may take until its guest answers. A cold boot takes a "
        "second, under emulation five; a slow or busy host may need more.",
    )
    cache_mib: Count = Field(
        default=4096, description="The size of a new cache disk; it takes what is written to it."
    )
    cache_count: Count = Field(
        default=16,
        description="How many cache disks are kept; for another one the one goes that was not used "
        "for the longest time.",
    )
    warm: dict[str, Count] = Field(
        default_factory=dict[str, Count],
        description="How many machines of an image stand ready to be claimed, by the image's name, "
        "with the usual memory and one processor; they take no slot until then.",
    )
    qemu: str = Field(
        default="qemu-system-x86_64", min_length=1, description="The QEMU that runs them."
    )
    user: str | None = Field(
        default=None,
        min_length=1,
        description="The user that machines run as when the daemon is root.",
    )


class Libvirt(Section):
    """Who runs machines whose image is a disk."""

    uri: Annotated[str, Field(pattern=r"^qemu(\+unix)?://")] = Field(
        default="qemu:///system",
        description='Which libvirt is asked; "qemu:///session" is that of the daemon\'s own user.',
    )


class Networks(Section):
    """What connects machines with each other."""

    kind: Literal["userspace", "kernel"] = Field(
        default="userspace",
        description="Who passes their frames on: the daemon, which needs no right for it; or the "
        "kernel, by bridges and taps, which needs CAP_NET_ADMIN and the program nft.",
    )
    netns: Directory | None = Field(
        default=None,
        description="The file of a network namespace that the kernel's networks are made in, and "
        "nothing else; by default the daemon's own.",
    )


class Clusters(Section):
    """Machines that are raised together."""

    topology_dir: Directory | None = Field(
        default=None,
        description="The folder of the topologies that `cluster_define` knows by their name; by "
        "default `topologies` in the state directory.",
    )


class Runs(Section):
    """What this host does itself, each in a machine."""

    count: Count = Field(default=4, description="How many runs are under way at once; others wait.")
    timeout_s: Duration = Field(
        default=3600.0, description="How long a program may take where its task does not say."
    )


class Artifacts(Section):
    """What is kept of the files that runs leave behind, and of trees that are registered."""

    max_file_mib: Count = Field(default=256, description="The largest file.")
    max_run_mib: Count = Field(default=1024, description="The files of one run or tree together.")
    max_total_mib: Count = Field(
        default=10_240,
        description="The files of all runs and trees together; past that, more is left out until "
        "tasks are deleted.",
    )


class Price(Section):
    """What a million tokens of a model cost, in US dollars."""

    input: Dollars
    output: Dollars
    cache_write: Dollars | None = None
    cache_read: Dollars | None = None


class SecretUse(Section):
    """Where a secret is sent, and how."""

    url: Annotated[str, AfterValidator(base_url)]
    header: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9-]{0,99}$")] = "Authorization"
    prefix: Annotated[str, Field(max_length=100, pattern=r"^[\x20-\x7e]*$")] = "Bearer "
    # With one, it is the password of HTTP Basic.
    user: Annotated[str, Field(max_length=200, pattern=r"^[\x21-\x39\x3b-\x7e]+$")] | None = None


class Egress(Section):
    """What may leave a machine, beside what a run asks for."""

    anthropic_url: Annotated[str, AfterValidator(base_url)] = Field(
        default="https://api.anthropic.com", description="Where requests to Anthropic's API go."
    )
    openai_url: Annotated[str, AfterValidator(base_url)] = Field(
        default="https://api.openai.com", description="Where requests to OpenAI's API go."
    )
    hosts: tuple[str, ...] = Field(
        default=(),
        max_length=500,
        description='Hosts that every run may reach, as in "git.example.com" (on 80 and 443) or '
        '"*.example.com:8443".',
    )
    private_networks: tuple[str, ...] = Field(
        default=(),
        max_length=500,
        description='Inner networks in which allowed hosts may be, as in "10.1.0.0/16"; others '
        "are refused, whatever name leads there.",
    )
    prices: dict[str, Price] = Field(
        default_factory=dict[str, Price],
        description="Prices of models, in US dollars for a million tokens, by the beginning of "
        'their names: `"my-model" = { input = 3.0, output = 15.0 }`, with `cache_write` and '
        "`cache_read` where those differ from `input`. They go before the daemon's own list.",
    )
    secrets: dict[Name, SecretUse] = Field(
        default_factory=dict[str, SecretUse],
        description="Where credentials of the kind `secret` are sent, by their names: "
        '`github = { url = "https://api.github.com" }`, with `header` (Authorization), `prefix` '
        '("Bearer ") or a `user` of HTTP Basic. A run whose task names one asks '
        "http://127.0.0.1:8484/with/NAME/, and the daemon adds it.",
    )


class Log(Section):
    """What the daemon says on stderr."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least important line that is written."
    )
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="How a line looks; auto is console on a terminal, else JSON."
    )


class Settings(Section):
    """Everything the daemon can be told."""

    state_dir: Directory = Field(description="Where the store lies; made if it is missing.")
    socket: Socket = Field(description=Socket.__doc__)
    tcp: Tcp = Field(default=Tcp(), description=Tcp.__doc__)
    pages: Pages = Field(default=Pages(), description=Pages.__doc__)
    access: Access = Field(default=Access(), description=Access.__doc__)
    store: Store = Field(default=Store(), description=Store.__doc__)
    leases: Leases = Field(default=Leases(), description=Leases.__doc__)
    limits: Limits = Field(default=Limits(), description=Limits.__doc__)
    webhooks: Webhooks = Field(default=Webhooks(), description=Webhooks.__doc__)
    machines: Machines = Field(default=Machines(), description=Machines.__doc__)
    libvirt: Libvirt = Field(default=Libvirt(), description=Libvirt.__doc__)
    networks: Networks = Field(default=Networks(), description=Networks.__doc__)
    clusters: Clusters = Field(default=Clusters(), description=Clusters.__doc__)
    runs: Runs = Field(default=Runs(), description=Runs.__doc__)
    agents: Agents = Field(default=Agents(), description=Agents.__doc__)
    artifacts: Artifacts = Field(default=Artifacts(), description=Artifacts.__doc__)
    egress: Egress = Field(default=Egress(), description=Egress.__doc__)
    log: Log = Field(default=Log(), description=Log.__doc__)

    @property
    def roles_folder(self) -> Path:
        """Where this host's own roles lie."""
        return self.agents.roles_dir or self.state_dir / places.ROLES

    @property
    def teams_folder(self) -> Path:
        """Where this host's own templates of teams lie."""
        return self.agents.teams_dir or self.state_dir / places.TEAMS


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the file, as it was declared."""

    key: str
    field: FieldInfo

    @property
    def variable(self) -> str:
        return places.PREFIX + self.key.upper().replace(".", "__")


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and for every key what set it."""

    settings: Settings
    sources: Mapping[str, str]

    def value(self, key: str) -> Any:
        """Return what `key` came to."""
        value: Any = self.settings
        for name in key.split("."):
            value = getattr(value, name)
        return value


@dataclass(frozen=True, slots=True)
class _Given:
    key: str
    value: object
    source: str


def load(file: Path | None, env: Mapping[str, str], flags: Mapping[str, object]) -> Loaded:
    """Put the settings together from `file`, `env` and `flags` (dotted keys; None is not given).

    Raises:
        ConfigInvalid: a key is unknown or a value does not fit; says which, where, and what would.
    """
    layers = _defaults(env)
    if file is not None:
        layers += _from_file(file)
    layers += [*_from_env(env), *_from_flags(flags)]
    tree: dict[str, Any] = {}
    sources = dict.fromkeys(SETTINGS, "default")
    for given in layers:
        *sections, name = given.key.split(".")
        table = tree
        for section in sections:
            table = table.setdefault(section, {})
        table[name] = given.value
        sources[given.key] = given.source
    try:
        return Loaded(Settings.model_validate(tree), sources)
    except ValidationError as error:
        raise ConfigInvalid(_explain(error, sources)) from error


def _walk(section: type[Section], prefix: str = "") -> Iterator[Setting]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _walk(field.annotation, f"{prefix}{name}.")
        else:
            yield Setting(prefix + name, field)


# Every key there is, in the order of declaration.
SETTINGS: Mapping[str, Setting] = {setting.key: setting for setting in _walk(Settings)}
_SECTIONS = {key[:end] for key in SETTINGS for end, letter in enumerate(key) if letter == "."}


def _defaults(env: Mapping[str, str]) -> list[_Given]:
    return [
        _Given("state_dir", places.state_dir(env), "default"),
        _Given("socket.path", places.socket(env), "default"),
    ]


def _from_file(file: Path) -> list[_Given]:
    try:
        with file.open("rb") as stream:
            tree = tomllib.load(stream)
    except OSError as error:
        raise ConfigInvalid(f"cannot read {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{file} is not TOML: {error}") from error
    return list(_leaves(tree, "", str(file)))


def _leaves(table: dict[str, Any], prefix: str, place: str) -> Iterator[_Given]:
    for name, value in table.items():
        key = prefix + name
        if key in SETTINGS:
            yield _Given(key, value, place)
        elif key not in _SECTIONS:
            raise _unknown(key, place, SETTINGS)
        elif isinstance(value, dict):
            yield from _leaves(cast("dict[str, Any]", value), f"{key}.", place)
        else:
            raise ConfigInvalid(
                f"{key} in {place} is a table", hint=f"write [{key}] above its keys"
            )


def _from_env(env: Mapping[str, str]) -> Iterator[_Given]:
    variables = {setting.variable: key for key, setting in SETTINGS.items()} | _SHORT
    for variable, text in sorted(env.items()):
        if not variable.startswith(places.PREFIX) or variable in _NOT_SETTINGS:
            continue
        if variable not in variables:
            raise _unknown(variable, "the environment", variables)
        key = variables[variable]
        yield _Given(key, _parse(SETTINGS[key].field.annotation, text), variable)


def _from_flags(flags: Mapping[str, object]) -> Iterator[_Given]:
    for key, value in flags.items():
        if key not in SETTINGS:
            raise _unknown(key, "the command line", SETTINGS)
        if value is not None:
            yield _Given(key, value, "command line")


def _parse(annotation: Any, text: str) -> object:
    """Read a variable: as it stands where text is wanted, else as TOML would read the value."""
    if get_origin(annotation) not in {tuple, dict}:
        kinds = [annotation, *get_args(annotation)]
        if any(isinstance(kind, str) or _is_text(kind) for kind in kinds):
            return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # the check of the value says what was expected


def _is_text(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, str | PurePath)


def _unknown(key: str, place: str, known: Mapping[str, object]) -> ConfigInvalid:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return ConfigInvalid(f"unknown setting {key} in {place}", hint=f"the nearest is {near[0]}")


def _explain(error: ValidationError, sources: Mapping[str, str]) -> str:
    return "; ".join(_sentence(each["loc"], each["msg"], sources) for each in error.errors())


def _sentence(loc: tuple[int | str, ...], message: str, sources: Mapping[str, str]) -> str:
    where = ".".join(str(part) for part in loc)
    # A problem inside a list or a mapping lies below the key that was set.
    key = next((key for key in sources if f"{where}.".startswith(f"{key}.")), None)
    place = f" ({sources[key]})" if key else ""
    text = message.removeprefix("Value error, ")
    return f"{where}{place}: {text[:1].lower()}{text[1:]}"
