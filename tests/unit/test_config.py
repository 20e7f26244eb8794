"""Settings: three layers, every mistake named with its place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from microvm_orchestrator import config, places
from microvm_orchestrator.config import SETTINGS, Secret, load
from microvm_orchestrator.errors import ConfigInvalid
from microvm_orchestrator.model.access import Role

PREFIX = "MICROVM_ORCHESTRATOR_"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_nothing_needs_to_be_said() -> None:
    loaded = load(None, {"HOME": "/home"}, {})
    settings = loaded.settings
    assert settings.tcp.address is None
    assert settings.access.default_role is Role.OPERATOR
    assert settings.access.visibility_labels == ("project", "team")
    assert settings.store.events.max_age_s == 30 * 86_400
    assert settings.store.events.max_count == 1_000_000
    assert settings.store.tasks.max_age_s is None
    assert settings.leases.default_lease_s == 90
    assert settings.limits.max_request_bytes == 4 * 1024 * 1024
    assert set(loaded.sources.values()) == {"default"}


def test_two_flags_are_enough_to_serve(tmp_path: Path) -> None:
    flags = {"state_dir": str(tmp_path / "d"), "socket.path": str(tmp_path / "s")}
    loaded = load(None, {}, flags)
    assert loaded.settings.state_dir == tmp_path / "d"
    assert loaded.settings.socket.path == tmp_path / "s"
    assert loaded.sources["state_dir"] == "command line"


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    file = write(
        tmp_path / "c.toml",
        "[leases]\nmin_lease_s = 2\ndefault_lease_s = 20\nmax_lease_s = 200\n",
    )
    env = {f"{PREFIX}LEASES__DEFAULT_LEASE_S": "30", f"{PREFIX}LEASES__MAX_LEASE_S": "300"}
    loaded = load(file, env, {"leases.max_lease_s": 3000, "leases.min_lease_s": None})
    leases = loaded.settings.leases
    assert (leases.min_lease_s, leases.default_lease_s, leases.max_lease_s) == (2, 30, 3000)
    assert [loaded.sources[f"leases.{name}"] for name in type(leases).model_fields] == [
        f"{PREFIX}LEASES__DEFAULT_LEASE_S",
        str(file),
        "command line",
    ]
    assert loaded.value("leases.max_lease_s") == 3000


def test_a_table_of_the_file_keeps_the_defaults_it_does_not_name(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", "[store.events]\nmax_count = 5\n")
    events = load(file, {}, {}).settings.store.events
    assert (events.max_count, events.max_age_s) == (5, 30 * 86_400)


def test_the_word_none_lifts_a_limit(tmp_path: Path) -> None:
    file = write(tmp_path / "c.toml", '[store.events]\nmax_count = "none"\n')
    loaded = load(file, {f"{PREFIX}STORE__EVENTS__MAX_AGE_S": "none"}, {})
    assert loaded.settings.store.events.model_dump() == {"max_count": None, "max_age_s": None}


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("ACCESS__UID_ROLES", '{1000 = "admin"}', "access.uid_roles", {1000: Role.ADMIN}),
        ("ACCESS__VISIBILITY_LABELS", '["a", "b"]', "access.visibility_labels", ("a", "b")),
        ("WEBHOOKS__ALLOW_PRIVATE_TARGETS", "true", "webhooks.allow_private_targets", True),
        ("WEBHOOKS__TIMEOUT_S", "1.5", "webhooks.timeout_s", 1.5),
        ("SOCKET__MODE", "0600", "socket.mode", 0o600),
        ("SOCKET__GROUP", "1234", "socket.group", "1234"),
        ("SOCKET", "/run/x", "socket.path", Path("/run/x")),
        ("TCP__LISTEN", "[::1]:80", "tcp.listen", "[::1]:80"),
        ("TCP__LISTEN", "[::1]:80", "tcp.address", ("::1", 80)),
        ("LOG__LEVEL", "debug", "log.level", "debug"),
    ],
)
def test_a_variable_is_read_as_its_setting_needs_it(
    variable: str, text: str, key: str, value: object
) -> None:
    assert load(None, {PREFIX + variable: text}, {}).value(key) == value


def test_variables_that_are_for_clients_are_no_settings() -> None:
    env = {places.CONFIG_VARIABLE: "/etc/x.toml", places.TOKEN_VARIABLE: "secret"}
    assert set(load(None, env, {}).sources.values()) == {"default"}


@pytest.mark.parametrize(
    ("text", "sentence", "hint"),
    [
        ("[log]\nlevle = 'info'", "unknown setting log.levle in {file}", "log.level"),
        ("[lgo]\nlevel = 'info'", "unknown setting lgo in {file}", "log.level"),
        ("stat_dir = '/x'", "unknown setting stat_dir in {file}", "state_dir"),
        ("store = 3", "store in {file} is a table", "[store]"),
    ],
)
def test_an_unknown_key_of_the_file_is_refused_with_the_nearest(
    tmp_path: Path, text: str, sentence: str, hint: str
) -> None:
    file = write(tmp_path / "c.toml", text)
    with pytest.raises(ConfigInvalid) as raised:
        load(file, {}, {})
    assert str(raised.value) == sentence.format(file=file)
    assert hint in (raised.value.hint or "")


def test_an_unknown_variable_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigInvalid) as raised:
        load(None, {f"{PREFIX}LOG__LEVLE": "info"}, {})
    assert str(raised.value) == f"unknown setting {PREFIX}LOG__LEVLE in the environment"
    assert raised.value.hint == f"the nearest is {PREFIX}LOG__LEVEL"


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"unknown setting log\.size in the command line"):
        load(None, {}, {"log.size": 1})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("limits.max_request_bytes", 0, "greater than or equal to 1"),
        ("limits.max_request_bytes", True, "valid integer"),
        ("limits.max_request_bytes", "4", "valid integer"),
        ("webhooks.timeout_s", float("nan"), "finite"),
        ("webhooks.timeout_s", -1, "greater than 0"),
        ("webhooks.allow_private_targets", "yes", "valid boolean"),
        ("socket.mode", 660, "less than or equal to 511"),
        ("socket.path", "/" + "x" * 107, "is 108 bytes long"),
        ("tcp.listen", "localhost", '"host:port"'),
        ("tcp.listen", "localhost:66000", '"host:port"'),
        ("access.uid_roles", {"1000": "king"}, "'viewer', 'worker', 'operator' or 'admin'"),
        ("access.uid_roles", {"alice": "admin"}, "valid integer"),
        ("log.level", "loud", "'debug', 'info'"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_source(
    key: str, value: object, words: str
) -> None:
    with pytest.raises(ConfigInvalid) as raised:
        load(None, {}, {key: value})
    assert str(raised.value).startswith(key)
    assert "(command line): " in str(raised.value)
    assert words in str(raised.value)


def test_a_default_lease_outside_its_bounds_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"leases: needs min_lease_s <= default_lease_s"):
        load(None, {}, {"leases.max_lease_s": 10})


def test_a_file_that_cannot_be_read_or_is_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"cannot read .*gone\.toml: No such file"):
        load(tmp_path / "gone.toml", {}, {})
    with pytest.raises(ConfigInvalid, match=r"c\.toml is not TOML: .*line 2"):
        load(write(tmp_path / "c.toml", "[log]\nlevel = info"), {}, {})


def test_every_setting_is_described_and_reachable_by_its_variable() -> None:
    assert all(setting.field.description for setting in SETTINGS.values())
    assert len({setting.variable for setting in SETTINGS.values()}) == len(SETTINGS)


def test_a_secret_shows_in_no_text_made_of_it() -> None:
    secret = Secret("hunter2")
    assert "hunter2" not in f"{secret} {secret!r} {[secret]}"
    assert secret.get_secret_value() == "hunter2"


def test_a_service_keeps_its_things_where_systemd_made_room() -> None:
    env = {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "RUNTIME_DIRECTORY": "/run/a"}
    settings = load(None, env, {}).settings
    assert settings.state_dir == Path("/var/lib/a")
    assert settings.socket.path == Path("/run/a/socket")


def test_a_user_keeps_them_at_home() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    script = (
        "import os, sys; os.setgid(65534); os.setuid(65534)\n"
        "from microvm_orchestrator import places\n"
        "home = {'HOME': '/h'}\n"
        "print(places.state_dir(home), places.socket(home))\n"
        "print(places.state_dir({'XDG_STATE_HOME': '/s', **home}))\n"
        "print(places.socket({'XDG_RUNTIME_DIR': '/r', **home}))\n"
    )
    ran = subprocess.run(
        # The other user may not be able to read this folder: the module is handed over as text.
        [sys.executable, "-S", "-c", as_program(script)],
        check=True,
        capture_output=True,
        text=True,
        cwd="/",
    )
    name = "microvm-orchestrator"
    assert ran.stdout.split() == [
        f"/h/.local/state/{name}",
        f"/h/.local/state/{name}/{name}/socket",
        f"/s/{name}",
        f"/r/{name}/socket",
    ]


def as_program(script: str) -> str:
    source = Path(places.__file__).read_text()
    head = (
        "import sys, types\n"
        "package = types.ModuleType('microvm_orchestrator')\n"
        "package.places = types.ModuleType('microvm_orchestrator.places')\n"
        f"exec({source!r}, package.places.__dict__)\n"
        "sys.modules[package.__name__] = package\n"
    )
    return head + script


def test_a_client_finds_the_socket_it_was_told(tmp_path: Path) -> None:
    assert places.find_socket({places.SOCKET_VARIABLE: str(tmp_path)}) == tmp_path
    assert places.find_socket({"RUNTIME_DIRECTORY": str(tmp_path)}) == tmp_path / "socket"


def test_a_client_whose_home_is_shut_to_it_looks_for_the_daemon_of_the_system(
    tmp_path: Path,
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    tmp_path.chmod(0o700)
    script = (
        "import os, sys; os.setgid(65534); os.setuid(65534)\n"
        "from microvm_orchestrator import places\n"
        "print(places.find_socket({'HOME': sys.argv[1]}))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-S", "-c", as_program(script), tmp_path],
        check=True,
        capture_output=True,
        text=True,
        cwd="/",
    )
    # Where there is none, it names its user's own, which nobody answers at.
    own = tmp_path / ".local/state/microvm-orchestrator/microvm-orchestrator/socket"
    found = places.SYSTEM_SOCKET if os.access(places.SYSTEM_SOCKET, os.F_OK) else own
    assert ran.stdout.strip() == str(found)


def test_the_configuration_file_is_the_one_that_was_named(tmp_path: Path) -> None:
    assert places.find_config({places.CONFIG_VARIABLE: str(tmp_path)}) == tmp_path


def test_settings_cannot_be_changed_after_the_start() -> None:
    settings: Any = load(None, {}, {}).settings
    with pytest.raises(ValueError, match="frozen"):
        settings.log.level = "debug"
    assert isinstance(settings, config.Settings)
