"""A disk image as distributions publish them for clouds: a whole Debian that knows nobody.

It boots from its own disk by its own loader (SeaBIOS, extlinux), and is told by cloud-init who it
is: no key, no address and no host key are in it. Built once by the packages of this machine's own
sources, and kept beside the other images of tests.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from machines import CACHE

WANTED = ("mmdebstrap", "extlinux", "sfdisk", "mke2fs", "qemu-img", "losetup")
_PACKAGES = (
    *("systemd-sysv", "udev", "dbus", "openssh-server", "cloud-init", "netplan.io", "iproute2"),
    *(
        "iputils-ping",
        "kmod",
        "linux-image-cloud-amd64",
        "initramfs-tools",
        "isc-dhcp-client",
        "sudo",
    ),
)
_LOADER = "/usr/lib/EXTLINUX/mbr.bin"
_MIB = 1 << 20
_SIZE_MIB = 2048
# What a publisher's image says about itself, and nothing about who boots it.
_HOOK = r"""
set -e
cd "$1"
echo "datasource_list: [ NoCloud, None ]" >etc/cloud/cloud.cfg.d/90_sources.cfg
echo "locale: C.UTF-8" >etc/cloud/cloud.cfg.d/91_locale.cfg
echo "/dev/vda1 / ext4 defaults 0 1" >etc/fstab
printf "virtio_pci\nvirtio_blk\nvirtio_net\next4\n" >>etc/initramfs-tools/modules
sed -i s/^MODULES=.*/MODULES=list/ etc/initramfs-tools/initramfs.conf
chroot . update-initramfs -u
chroot . systemctl enable ssh systemd-networkd
rm -f etc/ssh/ssh_host_* etc/machine-id etc/hostname
touch etc/machine-id
kernel=$(ls boot/vmlinuz-*)
mkdir -p boot/extlinux
cat >boot/extlinux/extlinux.conf <<END
DEFAULT debian
PROMPT 0
TIMEOUT 1
SERIAL 0 115200
LABEL debian
 LINUX /$kernel
 INITRD /boot/initrd.img-${kernel#boot/vmlinuz-}
 APPEND root=/dev/vda1 ro console=ttyS0,115200 net.ifnames=0 mitigations=off
END
"""


def why_not() -> str | None:
    """Tell what is missing for one to be built here."""
    missing = [name for name in WANTED if shutil.which(name) is None]
    return f"there is no {', '.join(missing)}" if missing else None


def cloud_image() -> Path:
    """Give the image, which is built the first time; a few minutes."""
    built = CACHE / "cloud.qcow2"
    if not built.exists():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="cloud-") as name:
            _build(Path(name)).replace(built)
    return built


def _build(folder: Path) -> Path:
    sources = _run("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)").split("\n")
    mirror = next(line.split()[0] for line in sources if line.endswith("/debian/ bookworm"))
    (hook := folder / "hook").write_text("#!/bin/sh\n" + _HOOK)
    hook.chmod(0o755)
    root, disk = folder / "root", folder / "disk"
    included = f"--include={','.join(_PACKAGES)}"
    unsafe = "--dpkgopt=force-unsafe-io"
    how = ("--variant=minbase", included, unsafe, f"--customize-hook={hook}")
    _run("mmdebstrap", *how, "bookworm", str(root), mirror)
    with disk.open("wb") as file:
        file.truncate(_SIZE_MIB * _MIB)
    _run("sfdisk", "-q", str(disk), given="2048,,L,*\n")
    # As much as extlinux can read.
    features = ("-O", "^64bit,^metadata_csum", "-b", "4096", "-E", f"offset={_MIB}")
    size = f"{(_SIZE_MIB - 1) * 1024}k"
    _run("mke2fs", "-q", "-t", "ext4", *features, "-d", str(root), str(disk), size)
    _install_loader(disk, folder / "mounted")
    _run("qemu-img", "convert", "-O", "qcow2", str(disk), str(folder / "qcow2"))
    return folder / "qcow2"


def _install_loader(disk: Path, place: Path) -> None:
    place.mkdir()
    loop = _run("losetup", "-f", "--show", "-o", str(_MIB), str(disk)).strip()
    try:
        _run("mount", loop, str(place))
        try:
            _run("extlinux", "--install", str(place / "boot/extlinux"))
        finally:
            _run("umount", str(place))
    finally:
        _run("losetup", "-d", loop)
    with disk.open("r+b") as file:
        file.write(Path(_LOADER).read_bytes()[:440])


def _run(*words: str, given: str | None = None) -> str:
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-4000:])
    return done.stdout
