"""Topologies: what is accepted, what every wrong one is told, and that nothing else happens."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from microvm_orchestrator import errors
from microvm_orchestrator.clusters import strict_yaml, topology
from microvm_orchestrator.model.topology import Backend, Bus, Topology

# As the README of vmcluster-mcp has it.
SEED = """
# /etc/vmcluster/topologies/example-3node.yaml

cluster_name: example-3node
base_image: /var/lib/vmcluster/images/ubuntu-6.8-base.qcow2
overlay_dir: /var/lib/vmcluster/overlays/

network:
  name: clusternet-example
  bridge: virbr-example0
  subnet: 192.168.100.0/24

nodes:
  - name: controller
    role: control
    vcpus: 2
    memory_mb: 2048
    ip: 192.168.100.10
    extra_disks:
      - path: /var/lib/vmcluster/disks/data0.qcow2
        size_gb: 20
        bus: virtio

  - name: worker-0
    role: worker
    vcpus: 2
    memory_mb: 2048
    ip: 192.168.100.11

  - name: client-0
    role: client
    vcpus: 2
    memory_mb: 1024
    ip: 192.168.100.20

ssh:
  key_path: /etc/vmcluster/ssh/vmcluster_id_ed25519
  user: root
  connect_timeout_s: 30

snapshots:
  baseline: clean-boot   # Logical name for snapshot_revert("baseline")
"""

OURS = """
cluster_name: wide
image: embedded
networks:
  - {name: lan, subnet: 10.9.0.0/24, subnet6: "fd09::/64"}
  - {name: storage, subnet: 10.10.0.0/24, dhcp: true}
env: {MODE: test, LEVEL: "1"}
nodes:
  - name: one
    ip: 10.9.0.10
    ip6: "fd09::10"
    disk_gb: 1
    networks: [{name: storage}]
    extra_disks: [{path: /data/log.qcow2, size_gb: 1}]
    env: {LEVEL: "2"}
  - {name: two, ip: 10.9.0.11, networks: [{name: storage, ip: 10.10.0.7}]}
  - {name: apart, networks: [{name: storage}], backend: microvm}
"""


def wrong(text: str) -> str:
    with pytest.raises(errors.InvalidInput) as refused:
        topology.read(text)
    return refused.value.message


def test_the_topology_of_vmcluster_mcp_is_taken_as_it_is_and_every_key_of_it_kept() -> None:
    read = topology.read(SEED)
    assert [node.name for node in read.nodes] == ["controller", "worker-0", "client-0"]
    assert {read.backend_of(node) for node in read.nodes} == {Backend.LIBVIRT}
    assert read.every_network[0].bridge == "virbr-example0"
    [disk] = read.nodes[0].extra_disks
    assert (disk.path, disk.size_gb, disk.bus) == (
        "/var/lib/vmcluster/disks/data0.qcow2",
        20,
        Bus.VIRTIO,
    )
    assert (read.ssh.connect_timeout_s, read.snapshots.baseline) == (30.0, "clean-boot")
    kept = read.model_dump(mode="json", exclude_defaults=True)
    written: Any = yaml.safe_load(SEED)
    for default in ({"bus": "virtio"}, {"user": "root"}, {"connect_timeout_s": 30}):
        assert json.dumps(default)[1:-1] in json.dumps(written)
    del written["nodes"][0]["extra_disks"][0]["bus"]
    del written["ssh"]["user"], written["ssh"]["connect_timeout_s"]
    assert kept == written


def test_a_node_has_its_places_in_order_and_its_own_word_in_its_environment() -> None:
    read = topology.read(OURS)
    one, two, apart = read.nodes
    assert [(nic.name, nic.ip, nic.ip6) for nic in read.nics_of(one)] == [
        ("lan", "10.9.0.10", "fd09::10"),
        ("storage", None, None),
    ]
    assert [nic.name for nic in read.nics_of(two)] == ["lan", "storage"]
    assert [nic.name for nic in read.nics_of(apart)] == ["storage"]
    assert read.env_of(one) == {"MODE": "test", "LEVEL": "2"}
    assert read.env_of(two) == {"MODE": "test", "LEVEL": "1"}
    assert topology.serial_of(one.extra_disks[0]) == "log"


def test_what_nodes_have_no_use_of_is_told() -> None:
    read = topology.read(SEED.replace("base_image:", "backend: microvm\nbase_image:"))
    told = topology.notes(read)
    assert [line.partition(":")[0] for line in told] == [
        "base_image",
        "overlay_dir",
        "network clusternet-example",
        "ssh.key_path",
    ]
    by_libvirt = [line.partition(":")[0] for line in topology.notes(topology.read(SEED))]
    assert by_libvirt == ["overlay_dir", "network clusternet-example", "ssh.key_path"]
    assert topology.read(SEED).image_of(read.nodes[0]) == "ubuntu-6.8-base"
    assert read.image_of(read.nodes[0]) is None


def test_the_schema_takes_what_we_take() -> None:
    schema = Topology.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for text in (SEED, OURS):
        jsonschema.validate(yaml.safe_load(text), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"cluster_name": "x", "nodes": []}, schema)


SMALL = """
cluster_name: small
network: {name: lan, subnet: 192.168.100.0/24}
nodes:
  - {name: one, ip: 192.168.100.10}
  - {name: two, ip: 192.168.100.11}
"""

# What is put in the place of what, and what is told of it.
WRONG: list[tuple[str, str, str]] = [
    ("cluster_name: small\n", "", "cluster_name: is missing"),
    ("small", "../etc", "cluster_name: must be 1 to 31 small letters, digits and hyphens"),
    ("small", "a/b", "cluster_name: must be 1 to 31 small letters"),
    ("small", "x" * 32, "cluster_name: must be 1 to 31 small letters"),
    ("small", "Small", "cluster_name: must be 1 to 31 small letters"),
    ("small", "-x", "cluster_name: must be 1 to 31 small letters"),
    ("small", "12", "cluster_name: must be a string (put quotes"),
    ("small", "yes", "cluster_name: must be a string (put quotes"),
    ("small", "[a]", "cluster_name: must be a string"),
    ("small", "", "cluster_name: must be a string"),
    ("network: {", "net: {", "net: there is no such key"),
    ("network: {", "netwrk: {", "netwrk: there is no such key (did you mean `network"),
    ("{name: lan, subnet: 192.168.100.0/24}", "null", "network: is missing: a cluster has at"),
    ("{name: lan, subnet: 192.168.100.0/24}", "7", "network: should be a valid dictionary"),
    ("lan,", "lan/../x,", "network.name: must be 1 to 31 small letters"),
    ("192.168.100.0/24", "192.168.100.0", "network.subnet: '192.168.100.0' is not an IPv4 subnet"),
    ("192.168.100.0/24", "192.168.100.7/24", "network.subnet: '192.168.100.7/24' has bits beyond"),
    ("192.168.100.0/24", "192.168.100.0/33", "network.subnet: '192.168.100.0/33' is not an IPv4"),
    ("192.168.100.0/24", "127.0.0.0/8", "network.subnet: no machine can have an address of"),
    ("192.168.100.0/24", "192.168.100.0/31", "network.subnet: 192.168.100.0/31 has no room"),
    (", subnet: 192.168.100.0/24", "", "network.subnet: is missing: a network has a `subnet` or"),
    ("/24}", "/24, dhcp: maybe}", "network.dhcp: should be a valid boolean"),
    ("/24}", "/24, rdma: true}", "network.rdma: is not offered: networks of this host"),
    ("/24}", "/24, bridge: way-too-long-for-linux}", "network.bridge: has characters"),
    ("/24}", '/24, subnet6: "10.0.0.0/8"}', "network.subnet6: '10.0.0.0/8' is not an IPv6 subnet"),
    (
        "nodes:",
        "networks: [{name: lan, subnet: 10.0.0.0/8}]\nnodes:",
        "networks[0].name: lan is already that of network",
    ),
    (
        "nodes:",
        "networks: [{name: b, subnet: 192.168.0.0/16}]\nnodes:",
        "networks[0].subnet: 192.168.0.0/16 overlaps 192.168.100.0/24 of network.subnet",
    ),
    ("two, ip: 192.168.100.11", "two, ip: 192.168.7.9", "nodes[1].ip: 192.168.7.9 is outside of"),
    (
        "two, ip: 192.168.100.11",
        "two, ip: 192.168.100.10",
        "nodes[1].ip: 192.168.100.10 is already",
    ),
    ("100.11", "100.1", "nodes[1].ip: 192.168.100.1 is the gateway of 192.168.100.0/24"),
    ("100.11", "100.0", "nodes[1].ip: 192.168.100.0 is 192.168.100.0/24 itself"),
    ("100.11", "100.255", "nodes[1].ip: 192.168.100.255 is the broadcast address of"),
    ("192.168.100.11", "over-there", "nodes[1].ip: 'over-there' is not an IPv4 address"),
    ("192.168.100.11", "10.1", "nodes[1].ip: must be a string"),
    (", ip: 192.168.100.11", "", "nodes[1].ip: is missing: network lan gives no addresses unless"),
    (
        "100.11}",
        '100.11, ip6: "fd00::2"}',
        "nodes[1].ip6: network lan has no `subnet6` for fd00::2",
    ),
    ("two,", "one,", "nodes[1].name: one is already that of nodes[0]"),
    ("two,", "../../x,", "nodes[1].name: must be 1 to 31 small letters"),
    ("name: two, ", "", "nodes[1].name: is missing"),
    ("100.11}", "100.11, memry_mb: 5}", "nodes[1].memry_mb: there is no such key (did you mean"),
    ("100.11}", "100.11, memory_mb: 5}", "nodes[1].memory_mb: should be greater than or equal to"),
    ("100.11}", '100.11, memory_mb: "512"}', "nodes[1].memory_mb: should be a valid integer"),
    ("100.11}", "100.11, vcpus: 2.0}", "nodes[1].vcpus: should be a valid integer"),
    ("100.11}", "100.11, vcpus: 1000}", "nodes[1].vcpus: should be less than or equal to 64"),
    ("100.11}", "100.11, role: a b}", "nodes[1].role: has characters that are not allowed"),
    ("100.11}", "100.11, backend: xen}", "nodes[1].backend: should be 'microvm' or 'libvirt'"),
    ("100.11}", "100.11, backend: libvirt}", "nodes[1].image: is missing: libvirt boots"),
    ("100.11}", "100.11, env: {A: 1}}", "nodes[1].env.A: must be a string (put quotes"),
    ("100.11}", "100.11, env: {a b: x}}", "nodes[1].env.a b"),
    ("100.11}", "100.11, networks: [{name: wan}]}", "nodes[1].networks[0].name: there is no"),
    (
        "100.11}",
        "100.11, extra_disks: [{path: d.qcow2, size_gb: 1}]}",
        "nodes[1].extra_disks[0].path: must be an absolute path",
    ),
    (
        "100.11}",
        "100.11, extra_disks: [{path: /d/../../e, size_gb: 1}]}",
        "nodes[1].extra_disks[0].path: must be an absolute path without",
    ),
    (
        "100.11}",
        "100.11, extra_disks: [{path: /d, size_gb: 0}]}",
        "nodes[1].extra_disks[0].size_gb: should be greater than or equal to 1",
    ),
    (
        "100.11}",
        "100.11, extra_disks: [{path: /d, size_gb: 1, bus: sata}]}",
        "nodes[1].extra_disks[0].bus: nodes have no sata disks",
    ),
    (
        "100.11}",
        "100.11, extra_disks: [{path: /x/root.img, size_gb: 1}]}",
        "nodes[1].extra_disks[0].path: a node cannot call a disk 'root'",
    ),
    (
        "100.11}",
        "100.11, extra_disks: [{path: /d, size_gb: 1}, {path: /d, size_gb: 1}]}",
        "nodes[1].extra_disks[1].path: /d is already that of nodes[1].extra_disks[0]",
    ),
    (
        "cluster_name",
        "ssh: {connect_timeout_s: 0}\ncluster_name",
        "ssh.connect_timeout_s: should be greater than or equal to 0.1",
    ),
    ("cluster_name", "ssh: {usr: root}\ncluster_name", "ssh.usr: there is no such key (did you"),
    ("cluster_name", "snapshots: {baseline: ../x}\ncluster_name", "snapshots.baseline: has charac"),
    ("cluster_name", "base_image: /img/-.qcow2\ncluster_name", "base_image: '-' cannot be the"),
    (
        "100.11}",
        "100.11, backend: libvirt, image: x, disk_gb: 1}",
        "nodes[1].disk_gb: is for microVMs",
    ),
    ("cluster_name", "base_image: img.qcow2\ncluster_name", "base_image: must be an absolute path"),
    (
        "cluster_name",
        "cluster_name: a\ncluster_name",
        "cluster_name: is there twice, on line 2 and",
    ),
    ("two, ip", "two, ip: 10.0.0.1, ip", "nodes[1].ip: is there twice, on line 6 and on line 6"),
    ("{name: two", "&x {name: two", "line 6: anchors are not allowed"),
    ("lan,", "*x ,", "line 3: aliases are not allowed"),
    ("small", "!!python/object/apply:os.system [id]", "line 2: tags are not allowed"),
    ("small", "{", "line 4, column 1: expected"),
    ("small", "s\x07", "it holds a character that YAML does not allow"),
    ("small", '"\\ud800"', "cluster_name: has half of a surrogate pair"),
    ("small", '"\\UFFFFFFFF"', "it holds an escape for a character that there is not"),
    ("cluster_name", "---\na: 1\n---\ncluster_name", "line"),
    ("cluster_name", "? [a, b]\n: c\ncluster_name", "the key on line 2 is not a word"),
    ("small", "[" * 20 + "]" * 20, "line 2: it is nested deeper than 16 levels"),
    ("small", "[" + "1," * 10_001 + "]", "line 2: it has more than 10000 values"),
    ("small", "x" * 65_536, "it has 65678 characters"),
    (SMALL, "", "the topology is empty"),
    (SMALL, "just words", "the topology is not a mapping"),
    (SMALL[SMALL.index("nodes:") :], "nodes: []", "nodes: List should have at least 1 item"),
    (SMALL[SMALL.index("nodes:") :], "", "nodes: is missing"),
]


@pytest.mark.parametrize(("what", "by", "told"), WRONG)
def test_what_is_wrong_is_told_with_its_path(what: str, by: str, told: str) -> None:
    topology.read(SMALL)
    assert what in SMALL
    said = wrong(SMALL.replace(what, by, 1))
    assert any(line.startswith(told) or told in line for line in said.split("; ")), said


def test_all_that_is_wrong_is_told_at_once() -> None:
    text = """
cluster_name: ../x
network: {name: lan, subnet: 10.0.0.0/24}
networks: [{name: lan, subnet: 10.0.0.0/25}]
nodes:
  - {name: one, ip: 192.168.7.9, memry_mb: 3}
  - {name: two, ip: 192.168.7.9, memory_mb: yes}
  - {name: two, ip: 10.0.0.1, env: {A: 1}}
  - {name: six, ip: 10.0.0.300}
ssh: {connect_timeout_s: -1}
"""
    paths = [line.partition(": ")[0] for line in wrong(text).split("; ")]
    assert sorted(paths) == [
        "cluster_name",
        "networks[0].name",
        "networks[0].subnet",
        "nodes[0].ip",
        "nodes[0].memry_mb",
        "nodes[1].ip",
        "nodes[1].ip",
        "nodes[1].memory_mb",
        "nodes[2].env.A",
        "nodes[2].ip",
        "nodes[2].name",
        "nodes[3].ip",
        "ssh.connect_timeout_s",
    ]


def test_no_more_is_told_than_somebody_reads() -> None:
    nodes = "\n".join(f"  - {{name: N{number}, ip: 1}}" for number in range(64))
    said = wrong("cluster_name: x\nnetwork: {name: a, subnet: 10.0.0.0/24}\nnodes:\n" + nodes)
    assert said.endswith(" (and 78 more)")
    assert len(said) < 10_000


def _only_refused(text: str) -> None:
    try:
        topology.read(text)
    except errors.InvalidInput as refused:
        assert refused.message  # noqa: PT017  # it is no failure to be taken as it is


KEYS = st.sampled_from(
    [
        *Topology.model_fields,
        *("name", "subnet", "subnet6", "dhcp", "ip", "ip6", "role", "vcpus", "memory_mb"),
        *("extra_disks", "path", "size_gb", "bus", "key_path", "baseline", "<<", "=", "on"),
    ]
)
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["10.0.0.0/24", "10.0.0.9", "fd00::/64", "fd00::9", "lan", "one", "/d", "1:30"]
    ),
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(KEYS, st.text()), inner, max_size=6)
    ),
    max_leaves=25,
)


@settings(max_examples=300)
@given(st.text(max_size=300))
def test_whatever_the_text_it_is_read_or_refused(text: str) -> None:
    _only_refused(text)


@settings(max_examples=300)
@given(st.dictionaries(KEYS, VALUES, max_size=8))
def test_whatever_the_values_they_are_read_or_refused(value: dict[str, Any]) -> None:
    try:
        topology.check(value)
    except errors.InvalidInput:
        _only_refused(json.dumps(value))
        _only_refused(yaml.dump(value, allow_unicode=True))


@settings(max_examples=200)
@given(
    st.sampled_from([SEED, OURS, SMALL]),
    st.lists(
        st.tuples(st.integers(0, 2000), st.sampled_from("-:#{}[]&*!|>'\"%@\t\n ?0a,")), max_size=6
    ),
)
def test_whatever_slip_of_the_pen_it_is_read_or_refused(
    text: str, slips: list[tuple[int, str]]
) -> None:
    for number, slip in slips:
        place = number % len(text)
        text = text[:place] + slip + text[place + 1 :]
    _only_refused(text)


def test_a_word_that_yaml_takes_for_something_else_stays_a_word() -> None:
    read = strict_yaml.read("{on: 1:30, date: 2026-01-01, hex: 0x1F, big: 1_000, float: 1.5}")
    assert read.value == {
        "on": "1:30",
        "date": "2026-01-01",
        "hex": "0x1F",
        "big": "1_000",
        "float": 1.5,
    }
