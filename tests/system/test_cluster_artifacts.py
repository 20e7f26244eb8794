"""Builds in the nodes of a cluster: brought there, installed, loaded into real kernels, and built.

All tests here share one cluster of two nodes, and come in the order of a build's life.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import anyio
import pytest

from machines import LONG_S
from netem_guest import kernel_modules
from stdio_client import stdio_client
from system.living import Stage, living

BASE = "/opt/vmcluster/artifacts"
DUO = {"cluster": "duo"}
TOPOLOGY = """
cluster_name: duo
network: {name: lan, subnet: 10.9.0.0/24}
env: {WHO: env}
nodes:
  - {name: n1, memory_mb: 192, ip: 10.9.0.11}
  - {name: n2, memory_mb: 192, ip: 10.9.0.12}
"""
# The first needs the others, which come behind it by name.
WANTED = "8021q"


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stage]:
    with living(tmp_path_factory.mktemp("duo") / "s") as stage:
        stage.ask("cluster_define", topology=TOPOLOGY)
        stage.done("cluster_start", **DUO)
        yield stage
        stage.done("cluster_destroy", **DUO, delete_disks=True)


@pytest.fixture(scope="module")
def modules(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a build of real modules, as they lie in a tree of the kernel's."""
    folder = tmp_path_factory.mktemp("modules")
    release = said(stage, "n1", "uname -r").strip()
    for module in anyio.run(kernel_modules, [WANTED], folder / "scratch"):
        (folder / f"net {module.name}").mkdir()
        (folder / f"net {module.name}" / f"{module.name}.ko").write_bytes(module.data)
    (folder / "include/generated").mkdir(parents=True)
    named = f'#define UTS_RELEASE "{release}"\n'
    (folder / "include/generated/utsrelease.h").write_text(named)
    (folder / "tool").write_text("#!/bin/sh\necho it works\n")
    (folder / "tool").chmod(0o755)
    return folder


def said(stage: Stage, node: str, script: str) -> str:
    ran = stage.ask("node_exec", **DUO, node=node, script=script, timeout_s=LONG_S)
    assert ran["exit_code"] == 0, ran
    return str(ran["stdout"])


def registered(stage: Stage, folder: Path, **more: Any) -> str:
    return str(stage.done("artifact_register", path=str(folder), **more)["artifact_id"])


def nodes(stage: Stage) -> dict[str, Any]:
    status = stage.ask("cluster_status", **DUO)
    return {node["name"]: node for node in status["nodes"]}


def test_a_build_comes_to_all_nodes_whole_and_only_what_is_new_of_it(
    stage: Stage, modules: Path
) -> None:
    tree = registered(stage, modules)
    asked = {**DUO, "artifact_id": tree}
    there = f"{BASE}/{tree.removeprefix('sha256:')}"
    synced = stage.done("cluster_artifact_sync", **asked)
    assert synced["all_succeeded"], synced
    sent = [node["sent_files"] for node in synced["nodes"].values()]
    assert sent == [stage.ask("artifact_show", artifact_id=tree)["artifact"]["files"]] * 2
    assert said(stage, "n2", f"{there}/tool") == "it works\n"
    again = stage.done("cluster_artifact_sync", **asked)
    assert [node["skipped"] for node in again["nodes"].values()] == [True, True]
    # What was changed in a node is not what was registered.
    said(stage, "n1", f"echo more >>{there}/tool; touch {there}/more")
    refused = stage.done("cluster_artifact_install", **asked, nodes=["n1"])
    assert refused["nodes"]["n1"]["error"]["code"] == "state-forbids"
    mended = stage.done("cluster_artifact_sync", **asked)
    assert [node["skipped"] for node in mended["nodes"].values()] == [False, True]
    assert said(stage, "n1", f"{there}/tool; ls {there}/more || :") == "it works\n"
    # The next build shares all but one file with it.
    (modules / "tool").write_text("#!/bin/sh\necho it works better\n")
    newer = registered(stage, modules)
    (modules / "tool").write_text("#!/bin/sh\necho it works\n")
    brought = stage.done("cluster_artifact_sync", **DUO, artifact_id=newer, nodes=["n1"])
    assert list(brought["nodes"]) == ["n1"]
    assert (brought["nodes"]["n1"]["sent_files"], brought["all_succeeded"]) == (1, True)
    path = brought["nodes"]["n1"]["path"]
    assert said(stage, "n1", f"{path}/tool; ls -A {BASE} | wc -l") == "it works better\n2\n"
    diff = stage.ask("artifact_diff", artifact_id=tree, other=newer)
    assert (diff["changed"], diff["changed_modules"]) == (["tool"], [])


def test_modules_are_installed_and_loaded_and_the_status_tells_of_them(
    stage: Stage, modules: Path
) -> None:
    tree = registered(stage, modules)
    asked = {**DUO, "artifact_id": tree}
    assert not any(node["artifact_id_installed"] for node in nodes(stage).values())
    for _ in range(2):  # the second time they are taken out first
        done = stage.done("cluster_artifact_install", **asked, load=True)
        assert done["all_succeeded"], done
        assert any(path.endswith(f"/{WANTED}.ko") for path in done["nodes"]["n2"]["installed"])
    for node in nodes(stage).values():
        assert node["artifact_id_installed"] == tree
        assert WANTED in node["loaded_modules"]
    assert said(stage, "n2", f"ls -d /sys/module/{WANTED}").strip() == f"/sys/module/{WANTED}"
    nothing = stage.refusal("cluster_artifact_install", **asked, mode="deb")
    assert nothing == "invalid-input"
    assert nodes(stage)["n1"]["artifact_id_installed"] == tree


def test_an_installation_that_fails_says_why_and_counts_as_none(
    stage: Stage, tmp_path: Path
) -> None:
    (tmp_path / "Makefile").write_text("install:\n")
    tree = registered(stage, tmp_path, build_type="make_install")
    asked = {**DUO, "artifact_id": tree, "nodes": ["n1"]}
    stage.done("cluster_artifact_sync", **asked)
    failed = stage.done("cluster_artifact_install", **asked)
    told = failed["nodes"]["n1"]
    # This guest has no make.
    assert (told["exit_code"], failed["failed_nodes"]) == (127, ["n1"])
    assert "make" in told["output"]
    assert nodes(stage)["n1"]["artifact_id_installed"] is None
    # Where there is one it runs in a copy.
    make = "#!/bin/sh\necho made by $1 >/tmp/made; touch built; sleep ${2:-0}\n"
    said(stage, "n1", f"printf '{make}' >/usr/local/bin/make; chmod 755 /usr/local/bin/make")
    done = stage.done("cluster_artifact_install", **asked)
    assert done["all_succeeded"], done
    assert said(stage, "n1", "cat /tmp/made") == "made by install\n"
    assert said(stage, "n1", f"ls {told['path']}") == "Makefile\n"
    assert nodes(stage)["n1"]["artifact_id_installed"] == tree
    said(stage, "n1", "printf '#!/bin/sh\\necho begun; sleep 4321' >/usr/local/bin/make")
    late = stage.done("cluster_artifact_install", **asked, timeout_s=1.0)["nodes"]["n1"]
    assert (late["timed_out"], late["exit_code"], late["output"]) == (True, None, "begun\n")
    assert nodes(stage)["n1"]["artifact_id_installed"] is None


def test_sources_come_to_a_node_and_are_built_with_what_the_compiler_says(
    stage: Stage, tmp_path: Path
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.c").write_text("int x\n")
    (tmp_path / "build.sh").write_text("echo a.c:1:6: error: expected >&2; exit 2\n")
    asked = {**DUO, "node": "n2", "local_path": str(tmp_path), "remote_path": "/srv/src"}
    assert stage.done("node_source_sync", **asked)["sent_files"] == 2
    said(stage, "n2", "touch /srv/src/made")
    assert stage.done("node_source_sync", **asked)["skipped"] is True
    build = {**DUO, "node": "n2", "path": "/srv/src", "command": "sh build.sh", "binary": "out"}
    failed = stage.done("node_source_build", **build)
    assert (failed["exit_code"], failed["errors"], failed["binary"]) == (2, 1, None)
    [complaint] = failed["diagnostics"]
    assert (complaint["file"], complaint["line"], complaint["column"]) == ("a.c", 1, 6)
    (tmp_path / "build.sh").write_text('echo "$WHO" | tee out\n')
    assert stage.done("node_source_sync", **asked)["sent_files"] == 1
    built = stage.done("node_source_build", **build)
    assert (built["exit_code"], built["output"], built["binary_size"]) == (0, "env", 4)
    digest = said(stage, "n2", "sha256sum /srv/src/out; ls /srv/src").split()
    assert built["binary"] == f"sha256:{digest[0]}"
    assert digest[2:] == ["build.sh", "made", "out", "sub"]


def test_a_node_that_cannot_hold_it_all_has_nothing_that_looks_like_it(
    stage: Stage, tmp_path: Path
) -> None:
    (tmp_path / "large").write_bytes(bytes(range(256)) * 2000)
    tree = registered(stage, tmp_path)
    said(stage, "n1", "mkdir /srv/small && mount -t tmpfs -o size=200k small /srv/small")
    asked = {**DUO, "artifact_id": tree, "dest_base": "/srv/small"}
    synced = stage.done("cluster_artifact_sync", **asked)
    assert synced["failed_nodes"] == ["n1"]
    assert "No space left" in synced["nodes"]["n1"]["error"]["message"]
    assert said(stage, "n1", "ls -A /srv/small") == ""
    assert said(stage, "n2", "ls /srv/small").split() == [tree.removeprefix("sha256:")]
    said(stage, "n1", "umount /srv/small")
    # What a daemon that was killed has left of its work is removed by the next.
    said(stage, "n1", "mkdir /srv/small/.0f.part && touch /srv/small/.0f.part/large")
    assert stage.done("cluster_artifact_sync", **asked)["all_succeeded"]
    assert said(stage, "n1", "ls -A /srv/small") == said(stage, "n2", "ls -A /srv/small")


def test_a_client_of_vmcluster_mcp_brings_a_build_to_its_nodes(
    stage: Stage, modules: Path, tmp_path: Path
) -> None:
    with stdio_client(stage.daemon.socket, "vmcluster", {}) as client:

        def told(tool: str, **arguments: Any) -> dict[str, Any]:
            answer: dict[str, Any] = client.call(tool, **arguments)
            return answer

        def done(tool: str, **arguments: Any) -> Any:
            answer = told(tool, **arguments)
            assert answer["success"], answer
            return answer["result"]

        def failure(tool: str, **arguments: Any) -> str:
            return str(told(tool, **arguments)["error"]["code"])

        made = done("artifact_register", source_path=str(modules), metadata={"by": "us"})
        name = made["artifact_id"]
        assert (len(name), made["metadata"]) == (64, {"by": "us"})
        assert made["kernel_version"] == said(stage, "n1", "uname -r").strip()
        assert name in [each["artifact_id"] for each in done("artifact_list")]
        (tmp_path / "x.ko").write_text("not a module")
        other = done("artifact_register", source_path=str(tmp_path))["artifact_id"]
        differ = done("artifact_diff", artifact_id_a=name, artifact_id_b=other)
        assert "x.ko" in differ["changed_modules"]
        there = {"cluster_name": "duo", "artifact_id": name}
        for node in done("artifact_sync", **there, force=True)["per_node"].values():
            assert (node["rsync_exit_code"], node["skipped"]) == (0, False)
            assert node["bytes_transferred"] > 0
        for node in done("artifact_install", **there)["per_node"].values():
            assert node["exit_code"] == 0
            assert any(path.endswith(f"/{WANTED}.ko") for path in node["installed_module_paths"])
        for node in done("cluster_status", cluster_name="duo")["nodes"]:
            assert node["artifact_id_installed"] == name
            assert WANTED in node["loaded_modules"]
        unknown = {**there, "artifact_id": "0f" * 32}
        assert failure("artifact_sync", **unknown) == "ARTIFACT_NOT_FOUND"
        assert failure("artifact_install", **{**there, "artifact_id": other}) == "PARTIAL_FAILURE"
        node = {"cluster": "duo", "node": "n1"}
        sources = {**node, "local_path": str(tmp_path), "remote_path": "/srv/driver/"}
        assert done("source_sync_to_node", **sources)["bytes_transferred"] == 12
        no_folder = {**sources, "local_path": str(tmp_path / "x.ko")}
        assert failure("source_sync_to_node", **no_folder) == "LOCAL_PATH_NOT_DIR"
        build = {
            **node,
            "source_path": "/srv/driver",
            "build_path": "/srv/out",
            "binary_path": "y.ko",
            "version": "1",
        }
        make = "mkdir -p /srv/out; cp x.ko /srv/out/y.ko"
        built = done("source_build", **build, build_command=make)
        assert built == {
            "name": "y.ko",
            "version": "1",
            "build_node": "n1",
            "path": "/srv/out/y.ko",
            "hash": hashlib.sha256(b"not a module").hexdigest(),
        }
        broken = told("source_build", **build, build_command="echo 'a.c:3: error: no'; exit 1")
        assert broken["error"]["code"] == "BUILD_FAILED"
        assert "a.c:3: no" in broken["error"]["message"]


def test_a_node_that_is_down_is_named_and_the_others_are_served(
    stage: Stage, tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("x")
    tree = registered(stage, tmp_path)
    stage.done("node_crash", **DUO, node="n2", restart=False)
    synced = stage.done("cluster_artifact_sync", **DUO, artifact_id=tree)
    assert (synced["failed_nodes"], synced["all_succeeded"]) == (["n2"], False)
    assert synced["nodes"]["n2"]["error"]["code"] == "machine-unreachable"
    assert synced["nodes"]["n1"]["sent_files"] == 1
    down = nodes(stage)["n2"]
    assert (down["artifact_id_installed"], down["loaded_modules"]) == (None, None)
    build = {**DUO, "node": "n2", "path": "/srv", "command": "true"}
    assert stage.refusal("node_source_build", **build) == "machine-unreachable"


# With the programs themselves


def test_a_real_make_and_a_real_dpkg_install_in_a_guest_that_has_them(
    stage: Stage, tmp_path: Path, *, whole: bool
) -> None:
    if not whole:
        pytest.skip("it builds an image")
    with_tools = TOPOLOGY.replace("duo", "tools").replace("10.9.0", "10.9.1")
    with_tools = with_tools.replace("memory_mb: 192,", "memory_mb: 256, image: tools,")
    stage.done("image_build", name="tools", packages=["make", "dpkg", "tar"])
    stage.ask("cluster_define", topology=with_tools)
    stage.done("cluster_start", cluster="tools")
    try:
        _install_all(stage, tmp_path)
    finally:
        stage.done("cluster_destroy", cluster="tools", delete_disks=True)


def _install_all(stage: Stage, folder: Path) -> None:
    def run(script: str) -> str:
        ran = stage.ask("node_exec", cluster="tools", node="n1", script=script, timeout_s=LONG_S)
        assert ran["exit_code"] == 0, ran
        return str(ran["stdout"])

    def installed(name: str, **more: Any) -> dict[str, Any]:
        asked = {"cluster": "tools", "artifact_id": registered(stage, folder / name, **more)}
        assert stage.done("cluster_artifact_sync", **asked)["all_succeeded"]
        done = stage.done("cluster_artifact_install", **asked)
        told: dict[str, Any] = done["nodes"]["n1"]
        assert done["all_succeeded"], (name, told["output"])
        return told

    (folder / "make").mkdir()
    (folder / "make/Makefile").write_text("install:\n\techo made > /tmp/made\n")
    installed("make", build_type="make_install")
    assert run("cat /tmp/made") == "made\n"
    # What a system of Debian's has from its installation on.
    stage.ask("node_exec_all", cluster="tools", script=_DPKG, timeout_s=LONG_S)
    control = folder / "packed/DEBIAN"
    control.mkdir(parents=True)
    (control / "control").write_text(
        "Package: hello\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y.z>\nDescription: x\n"
    )
    (folder / "packed/usr/bin").mkdir(parents=True)
    (folder / "packed/usr/bin/hello-there").write_text("#!/bin/sh\necho hello\n")
    (folder / "packed/usr/bin/hello-there").chmod(0o755)
    (folder / "deb").mkdir()
    packed = ["dpkg-deb", "--root-owner-group", "-b", str(folder / "packed"), str(folder / "deb")]
    subprocess.run(packed, check=True, capture_output=True, timeout=LONG_S)
    assert "Setting up hello (1)" in installed("deb", build_type="deb")["output"]
    assert run("hello-there; dpkg -s hello | grep Status") == (
        "hello\nStatus: install ok installed\n"
    )


_DPKG = """
mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates
touch /var/lib/dpkg/status
[ -e /sbin/ldconfig ] || ln -s /bin/true /sbin/ldconfig
"""
