#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# lived_in.sh COMMAND...: runs it on this machine as somebody might have it, in a mount namespace of its own, so that this machine never sees
# it: a pcinuma of another version installed and configured, a libvirt hook of somebody else, a libvirtd configured by somebody else, and a
# user with a locale, an umask, a home and an environment of his own. Needs root.
set -eu
if [ "${LIVED_IN-}" != inside ]; then
    checkout=$(cd "$(dirname "$0")/.." && pwd)
    LIVED_IN=inside exec unshare --mount --propagation private sh "$checkout/tests/lived_in.sh" "$checkout" "$@"
fi
checkout=$1
shift
unset LIVED_IN

layers=$(mktemp -d)
mount -t tmpfs tmpfs "$layers"
for folder in etc usr var/lib; do
    mkdir -p "$layers/$folder" "$layers/work/$folder"
    mount -t overlay -o "lowerdir=/$folder,upperdir=$layers/$folder,workdir=$layers/work/$folder" overlay "/$folder"
done

# Another pcinuma, which fails whatever it is asked, and leaves no doubt that it was asked; with a unit and a page that this one has not.
rm -rf /usr/lib/pcinuma
mkdir -p /usr/lib/pcinuma/pcinuma /usr/lib/systemd/system /usr/share/man/man8 /var/lib/pcinuma /etc/pcinuma/pcinuma.conf.d
for program in pcinuma pcinumad pcinuma-proxy pcinuma-old; do
    printf '#!/bin/sh\necho "the wrong pcinuma" >&2\nexit 70\n' >"/usr/bin/$program"
    chmod 755 "/usr/bin/$program"
done
echo 'raise ImportError("the wrong pcinuma")' >/usr/lib/pcinuma/pcinuma/__init__.py
for unit in pcinuma.service pcinuma.socket pcinuma-old.service; do
    echo '[Unit]' >"/usr/lib/systemd/system/$unit"
done
echo old >/usr/share/man/man8/pcinuma.8
echo old >/usr/share/man/man8/pcinuma-old.8
echo 'python3-nothing' >/usr/lib/pcinuma/installed-packages
printf '[placement]\ngroup-by = node\nspare-ports = 3\npolicy = off\n' >/etc/pcinuma/pcinuma.conf
echo 'garbage' >/etc/pcinuma/pcinuma.conf.d/50-own.conf
echo '{"version": 99}' >/var/lib/pcinuma/state.json

# Somebody else's hook and libvirt.
mkdir -p /etc/libvirt/hooks/qemu.d /etc/libvirt/qemu /etc/systemd/system/libvirtd.socket.d
printf '#!/bin/sh\necho "the wrong hook" >&2\nexit 1\n' >/etc/libvirt/hooks/qemu
chmod 755 /etc/libvirt/hooks/qemu
cp -p /etc/libvirt/hooks/qemu /etc/libvirt/hooks/qemu.d/pcinuma
printf 'auth_unix_rw = "sasl"\nunix_sock_dir = "/srv/elsewhere"\n' >/etc/libvirt/libvirtd.conf
echo 'hugetlbfs_mount = "/nowhere"' >/etc/libvirt/qemu.conf
printf 'uri_default = "test:///default"\n' >/etc/libvirt/libvirt.conf
printf '[Socket]\nListenStream=\nListenStream=/srv/elsewhere/libvirt-sock\n' >/etc/systemd/system/libvirtd.socket.d/own.conf
echo '<domain' >/etc/libvirt/qemu/broken.xml

# A user.
mkdir -p "$layers/home/.config/libvirt" "$layers/home/modules" "$layers/tmp"
echo 'uri_default = "test:///default"' >"$layers/home/.config/libvirt/libvirt.conf"
for module in libvirt lxml structlog sitecustomize; do
    echo 'raise ImportError("the wrong module")' >"$layers/home/modules/$module.py"
done
umask 077
cd "$checkout"
exec env HOME="$layers/home" XDG_CONFIG_HOME="$layers/home/.config" XDG_RUNTIME_DIR="$layers/home" TMPDIR="$layers/tmp" \
    LANG=de_DE.ISO-8859-1 LC_ALL=tr_TR.UTF-8 LANGUAGE=de TZ=Asia/Kathmandu NO_COLOR=1 COLUMNS=20 LINES=5 PAGER=false MANWIDTH=30 \
    PYTHONPATH="$layers/home/modules" PYTHONHASHSEED=1 LIBVIRT_DEFAULT_URI=test:///default PCINUMA_ROOT=/nowhere PCINUMA_SOCKET=/nowhere/socket \
    PCINUMA_STATE=/nowhere/state PCINUMA_LIBVIRT_URI=test:///default "$@"
