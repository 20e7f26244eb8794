"""Which MAC and addresses a machine is given."""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_orchestrator import errors
from microvm_orchestrator.network.addresses import assign, mac_of
from microvm_orchestrator.network.base import Network, Port
from microvm_orchestrator.network.guard import mac_bytes

SMALL = Network("small", ("10.9.0.0/29", "fd09::/125"))


@given(st.text(), st.text())
def test_a_mac_is_of_one_machine_and_administered_locally(machine_id: str, network_id: str) -> None:
    mac = mac_bytes(mac_of(machine_id, network_id))
    assert mac[0] & 0b11 == 0b10
    assert mac_of(machine_id, network_id) == mac_of(machine_id, network_id)


def test_a_machine_has_another_mac_in_each_network() -> None:
    assert len({mac_of(machine, net) for machine in "ab" for net in ("x", "y", "bx")}) == 6


def test_the_same_machine_is_offered_the_same_wherever_it_is_asked() -> None:
    network = Network("n", ("10.9.0.0/16", "fd09::/64"))
    one = assign(network, "m-1")
    assert assign(network, "m-1") == one
    assert assign(network, "m-1", [assign(network, "m-2")]) == one
    assert one.ipv4 == one.addresses[0]


def test_a_prefix_is_given_out_to_its_end_and_no_further() -> None:
    ports: list[Port] = []
    for number in range(5):  # of eight: not itself, not a gateway, not the broadcast
        ports.append(assign(SMALL, f"m-{number}", ports))
    given_ = {str(ip_interface(port.addresses[0]).ip) for port in ports}
    assert given_ == {f"10.9.0.{host}" for host in range(2, 7)}
    assert {port.addresses[0].partition("/")[2] for port in ports} == {"29"}
    assert len({port.addresses[1] for port in ports}) == len({port.mac for port in ports}) == 5
    with pytest.raises(errors.NoRoom, match="all addresses of 10"):
        assign(SMALL, "one-more", ports)
    assert assign(SMALL, "m-3", ports) == ports[3]
    freed = ports.pop(2)
    assert assign(SMALL, "another", ports).addresses[0] == freed.addresses[0]


def test_what_is_taken_elsewhere_is_free_here() -> None:
    elsewhere = assign(Network("other", SMALL.prefixes), "m-1")
    here = assign(SMALL, "m-1", [elsewhere])
    assert here.addresses == elsewhere.addresses
    assert here.mac != elsewhere.mac


def test_a_wanted_address_is_given_or_refused() -> None:
    port = assign(SMALL, "m-1", wanted=["10.9.0.5"])
    assert port.addresses[0] == "10.9.0.5/29"
    assert ip_interface(port.addresses[1]).ip in ip_network("fd09::/125")
    wide = Network("wide", ("fd09::/48",))
    assert assign(wide, "m", wanted=["fd09:0:0:5::7"]).addresses == ("fd09:0:0:5::7/48",)
    with pytest.raises(errors.AlreadyExists, match="is taken"):
        assign(SMALL, "m-2", [port], wanted=["10.9.0.5"])
    for wrong in ("10.9.0.0", "10.9.0.1", "10.9.0.7", "10.9.0.8", "fd09::9", "ten", "10.9.0.5/29"):
        with pytest.raises(errors.InvalidInput):
            assign(SMALL, "m-2", wanted=[wrong])
    with pytest.raises(errors.InvalidInput, match="one address of a family"):
        assign(SMALL, "m-2", wanted=["10.9.0.3", "10.9.0.4"])


@pytest.mark.parametrize(
    "prefixes",
    [
        ("10.9.0.1/24",),
        ("10.9.0.0/31",),
        ("10.9.0.0/32",),
        ("fd09::/128",),
        ("224.0.0.0/8",),
        ("127.0.0.0/8",),
        ("fe80::/64",),
        ("net",),
        ("",),
        ("10.9.0.0/24", "10.8.0.0/24"),
    ],
)
def test_a_prefix_for_no_machines_is_refused(prefixes: tuple[str, ...]) -> None:
    with pytest.raises(errors.InvalidInput):
        assign(Network("wrong", prefixes), "m-1")


@given(st.lists(st.integers(0, 10**6), unique=True, max_size=30))
def test_no_two_machines_share_anything(numbers: list[int]) -> None:
    network = Network("n", ("10.9.0.0/26", "fd09::/64"))
    ports: list[Port] = []
    for number in numbers:
        ports.append(assign(network, f"m-{number}", ports))
    shared = [port.mac for port in ports] + [text for port in ports for text in port.addresses]
    assert len(set(shared)) == 3 * len(ports)
