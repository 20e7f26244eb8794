"""What a guest with cloud-init is told when it boots: a disk that it knows by its label.

Who it is, the key of ours that it lets in, the host key that it must show, and what it sets up on
which network. JSON is YAML, which is what cloud-init reads. It wants both user-data and meta-data,
or takes the disk for none. Above stands who starts machines.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from microvm_orchestrator.machine.libvirt import iso9660

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import JsonValue

    from microvm_orchestrator.machine.base import Link, MachineSpec
    from microvm_orchestrator.machine.ssh import KeyPair

# By which cloud-init finds it.
LABEL = "cidata"


def write(
    spec: MachineSpec, user: str, host: KeyPair, client: str, management: str | None
) -> bytes:
    """Write the disk. `client` is our public key; `management` the card that is ours alone."""
    return iso9660.write(
        LABEL,
        {
            "user-data": b"#cloud-config\n" + _json(_user_data(spec, user, host, client)),
            "meta-data": _json(_meta_data(spec)),
            "network-config": _json(_network(spec, management)),
        },
    )


def _user_data(spec: MachineSpec, user: str, host: KeyPair, client: str) -> Mapping[str, JsonValue]:
    root: dict[str, JsonValue] = {"name": user, "ssh_authorized_keys": [client]}
    ordinary: dict[str, JsonValue] = {
        **root,
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "shell": "/bin/bash",
        "lock_passwd": True,
    }
    return {
        "hostname": spec.hostname,
        "preserve_hostname": False,
        "disable_root": user != "root",
        "ssh_pwauth": False,
        "users": [root if user == "root" else ordinary],
        # No other host key: the one we know is the only one that it can show. Where keys are given
        # none are made, and an empty list of those to be made would be no valid document.
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": host.private.decode(), "ed25519_public": host.public},
    }


def _meta_data(spec: MachineSpec) -> Mapping[str, JsonValue]:
    # Another name of an instance makes cloud-init do it all again; a restart must not.
    name = hashlib.sha256(f"{spec.machine_id}/{spec.hostname}".encode()).hexdigest()[:16]
    return {"instance-id": f"i-{name}", "local-hostname": spec.hostname}


def _network(spec: MachineSpec, management: str | None) -> Mapping[str, JsonValue]:
    cards = {f"eth{number}": _card(f"eth{number}", link) for number, link in enumerate(spec.links)}
    if management is not None:
        cards["management"] = {
            "match": {"macaddress": management},
            "dhcp4": True,
            # The ways to everywhere are those of the other networks.
            "dhcp4-overrides": {"use-routes": False, "use-dns": False},
        }
    return {"version": 2, "ethernets": cards}


def _card(name: str, link: Link) -> JsonValue:
    addresses: list[JsonValue] = [each for each in (link.address, link.ipv6) if each]
    card: dict[str, JsonValue] = {
        "match": {"macaddress": link.mac},
        "set-name": name,
        "dhcp4": False,
        "optional": True,
    }
    if addresses:
        card["addresses"] = addresses
    if link.gateway:
        card["routes"] = [{"to": "0.0.0.0/0", "via": link.gateway}]
    return card


def _json(document: Mapping[str, JsonValue]) -> bytes:
    return json.dumps(document, indent=1).encode() + b"\n"
