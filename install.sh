#!/bin/bash
# Sets a host up for pcinuma, upgrades it in place, and takes it down again.
#
# Safe to run again at any time: every step looks first and changes only what differs, so that a run that broke off is
# mended by the next one. It never overwrites the configuration, nor a libvirt hook that is somebody else's, and never
# restarts libvirt or a guest: libvirt is told to reload, which is when it looks for hooks.
#
# What goes where (below DIR with --root DIR):
#   /usr/lib/pcinuma/pcinuma                    the Python package
#   /usr/bin/pcinuma, pcinumad, pcinuma-proxy   launchers on the distribution's own Python
#   /etc/libvirt/hooks/qemu                     the hook; qemu.d/pcinuma where somebody else has that file
#   /usr/lib/systemd/system/pcinuma*            units
#   /usr/lib/tmpfiles.d, man pages, completion
#   /etc/pcinuma                                configuration
set -eEu -o pipefail
umask 022
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

SELF=$(basename "$0")
SOURCE=$(cd "$(dirname "$0")" && pwd)
PYTHON=/usr/bin/python3
LIB=/usr/lib/pcinuma
UNITS=/usr/lib/systemd/system
HOOKS=/etc/libvirt/hooks
# What a line of our hook begins with, whatever its version.
HOOK_MARK="# libvirt's qemu hook of pcinuma"
SEEN=/run/pcinuma/hook-seen
MODULES=(libvirt:python3-libvirt lxml.etree:python3-lxml psutil:python3-psutil structlog:python3-structlog)
UNIT_FILES=(pcinuma.service pcinuma.socket pcinuma-proxy.service pcinuma-proxy.socket)
LAUNCHERS=(pcinuma:pcinuma.cli pcinumad:pcinuma.daemon.__main__ pcinuma-proxy:pcinuma.proxy.__main__)

usage() {
    cat <<TEXT
Usage: $SELF [OPTION]...
Set this host up for pcinuma, or bring an installed pcinuma up to date.

  --no-packages   install no distribution packages; stop if something is missing
  --root DIR      stage the files below DIR, for packagers: no packages, no daemon
  --uninstall     revert every placed domain and remove everything but the configuration
  --purge         the same, and remove the configuration
  --force         with --uninstall or --purge: go on although a domain cannot be reverted
  --demo [ARG]... install nothing but what the demonstration needs, and run it: a virtual
                  two-socket host, a guest in it, and what its kernel sees with and without
                  pcinuma (ARGs go to 'pcinuma demo')
  --help          show this text

Without options it installs the packages that are missing (libvirt and QEMU only where the host
has none), the program, the libvirt hook and the units, and starts the daemon. It can be run
again at any time. Configuration: /etc/pcinuma/pcinuma.conf. Manual: pcinuma(8).
TEXT
}

# --- what is said -----------------------------------------------------------------------------------------------------

DID=()      # what this run changed, one line each
NOTES=()    # what the administrator should know or do
BY_HAND=()  # the commands that start what no systemd starts here
STEP=""     # what is being done, for the message when it fails

did() {
    DID+=("$1")
    printf '  %s\n' "$1"
}

note() {
    NOTES+=("$1")
}

die() {
    trap - EXIT
    printf '%s: %s\n' "$SELF" "$1" >&2
    report_progress
    exit "${2:-1}"
}

report_progress() {
    if [ ${#DID[@]} -gt 0 ]; then
        printf '%s: what is listed above is done and kept; run it again when the cause is mended\n' "$SELF" >&2
    fi
}

broke_off() {
    local code=$?
    if [ "$code" -ne 0 ] && [ -n "$STEP" ]; then
        printf '%s: failed while %s (exit code %d)\n' "$SELF" "$STEP" "$code" >&2
        report_progress
    fi
}

usage_error() {
    trap - EXIT
    printf '%s: %s; see %s --help\n' "$SELF" "$1" "$0" >&2
    exit 2
}

# Runs a command whose output matters only if it fails.
quietly() {
    local output
    if ! output=$("$@" 2>&1 </dev/null); then
        printf '%s\n' "$output" | tail -n 20 >&2
        return 1
    fi
}

# --- what is there ----------------------------------------------------------------------------------------------------

systemd_runs() {
    [ -z "$ROOT" ] && [ "$LIVE" = yes ] && [ -d /run/systemd/system ]
}

have() {
    command -v "$1" >/dev/null 2>&1
}

# A libvirt in a container shows by its socket alone.
have_libvirt() {
    have libvirtd || have virtqemud || [ -S /run/libvirt/libvirt-sock ] || [ -S /run/libvirt/virtqemud-sock ]
}

have_qemu() {
    local machine
    machine=$(uname -m)
    have "qemu-system-${machine%le}" || have qemu-kvm || have kvm || [ -x /usr/libexec/qemu-kvm ]
}

hook_is_ours() {
    [ -f "$1" ] && [ ! -L "$1" ] && grep -q "^$HOOK_MARK" "$1"
}

digest() {
    sha256sum <"$1"
}

# One line per file of a package tree, compiled files left out.
tree_digest() {
    (cd "$1" && find . -name __pycache__ -prune -o -type f -print0 | sort -z | xargs -0 sha256sum)
}

# The pids of programs of this name that run the very file FILE of this system: not those of containers and chroots.
pids_of() {
    local name=$1 file=$2 process comm
    for process in /proc/[0-9]*; do
        { read -r comm <"$process/comm"; } 2>/dev/null || continue # no fork for each process of a big host
        [ "$comm" = "$name" ] || continue
        [ "$process/root$file" -ef "$file" ] && printf '%s\n' "${process#/proc/}"
    done
    return 0
}

# When a process started, as a number that only this process of this pid has.
start_of() {
    sed 's/.*) //' "/proc/$1/stat" | cut -d' ' -f20
}

# --- packages ---------------------------------------------------------------------------------------------------------

WANTED=()   # packages that are missing

# The packages of the modules that Python cannot import, one line each, and "old" where Python itself is too old.
missing_modules() {
    "$PYTHON" -I - "${MODULES[@]}" <<'PYTHON'
import sys
if sys.version_info < (3, 9):
    print("old")
for pair in sys.argv[1:]:
    module, _, package = pair.partition(":")
    try:
        __import__(module)
    except Exception as error:
        print(package)
        print("%s: %s" % (module, error), file=sys.stderr)
PYTHON
}

want_python() {
    local package
    if [ ! -x "$PYTHON" ]; then
        WANTED+=(python3 "${MODULES[@]#*:}")
        return
    fi
    for package in $(missing_modules 2>/dev/null); do
        [ "$package" = old ] || WANTED+=("$package")
    done
}

want_libvirt() {
    case $TOOL in
        apt) WANTED+=(libvirt-daemon-system libvirt-clients dnsmasq-base) ;;
        dnf) WANTED+=(libvirt-daemon-kvm libvirt-client) ;;
    esac
}

want_qemu() {
    case $TOOL-$(uname -m) in
        apt-x86_64) WANTED+=(qemu-system-x86 qemu-utils ovmf) ;;
        apt-aarch64) WANTED+=(qemu-system-arm qemu-utils qemu-efi-aarch64) ;;
        apt-ppc64le) WANTED+=(qemu-system-ppc qemu-utils) ;;
        dnf-*) WANTED+=(qemu-kvm) ;;
    esac
}

find_package_tool() {
    if have apt-get; then
        TOOL=apt
    elif have dnf; then
        TOOL=dnf
    else
        die "knows packages of Debian, Ubuntu, Fedora and RHEL only; install libvirt, QEMU and Python's libvirt, lxml, psutil and structlog, then run it with --no-packages"
    fi
}

install_packages() {
    [ ${#WANTED[@]} -gt 0 ] || return 0
    STEP="installing packages (${WANTED[*]})"
    printf '  installing packages: %s ...\n' "${WANTED[*]}"
    if [ "$TOOL" = apt ]; then
        export DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=l APT_LISTCHANGES_FRONTEND=none
        quietly apt-get -q update || note "apt-get update failed (above); used the package lists as they were"
        quietly apt-get -qy -o DPkg::Lock::Timeout=300 --no-install-recommends install "${WANTED[@]}"
    else
        if [[ " ${WANTED[*]} " == *" python3-structlog "* ]] && ! quietly dnf -q list python3-structlog 2>/dev/null; then
            die "python3-structlog is in EPEL here, which this host does not use: 'dnf install epel-release' (or your mirror of it), then run it again"
        fi
        quietly dnf -qy install "${WANTED[@]}"
    fi
    did "packages: ${WANTED[*]}"
}

check_python() {
    local missing
    missing=$(missing_modules) || die "$PYTHON does not run"
    [[ $missing != old* ]] || die "$PYTHON is $("$PYTHON" -V 2>&1); pcinuma needs the distribution's own Python to be 3.9 or newer"
    [ -z "$missing" ] || die "$PYTHON cannot import what it needs, though $(printf '%s' "$missing" | tr '\n' ' ') is installed (above)"
}

step_packages() {
    STEP="looking for what is installed"
    want_python
    if [ "$PACKAGES" = no ]; then
        [ ${#WANTED[@]} -eq 0 ] || die "missing: ${WANTED[*]} (as Debian and Fedora name them)"
    else
        find_package_tool
        have_libvirt || want_libvirt
        # Where libvirt shows by its socket alone, QEMU is where libvirt is: elsewhere.
        if ! have_qemu && { ! have_libvirt || have libvirtd || have virtqemud; }; then
            want_qemu
        fi
        install_packages
    fi
    check_python
    if [ ${#WANTED[@]} -gt 0 ]; then
        mkdir -p "$LIB"
        printf '%s\n' "${WANTED[@]}" >>"$LIB/installed-packages"
    fi
}

# --- files ------------------------------------------------------------------------------------------------------------

# put MODE DESTINATION < content: atomically, and only if it differs.
put() {
    local mode=$1 path=$2 target=$ROOT$2 new
    STEP="writing $target"
    mkdir -p "$(dirname "$target")"
    new=$(mktemp "$target.XXXXXX")
    cat >"$new"
    chmod "$mode" "$new"
    if [ -f "$target" ] && [ ! -L "$target" ] && [ "$(digest "$target")" = "$(digest "$new")" ]; then
        rm -f "$new"
        chmod "$mode" "$target"
        return
    fi
    local what=new
    [ -e "$target" ] && what=replaced
    mv -f "$new" "$target"
    CHANGED+=("$path")
    did "$path ($what)"
}

changed() {
    local path
    for path in ${CHANGED[@]+"${CHANGED[@]}"}; do
        # shellcheck disable=SC2053  # a pattern on purpose
        [[ $path == $1 ]] && return 0
    done
    return 1
}

step_program() {
    local target=$ROOT$LIB pair name
    STEP="copying the program to $target"
    mkdir -p "$target"
    if [ "$SOURCE" != "$target" ] &&
        { [ ! -d "$target/pcinuma" ] || [ "$(tree_digest "$SOURCE/pcinuma")" != "$(tree_digest "$target/pcinuma")" ]; }; then
        rm -rf "$target/pcinuma.new" "$target/pcinuma.old"
        cp -R "$SOURCE/pcinuma" "$target/pcinuma.new"
        find "$target/pcinuma.new" -name __pycache__ -prune -exec rm -rf {} +
        chmod -R u=rwX,go=rX "$target/pcinuma.new"
        if [ -z "$ROOT" ]; then
            quietly "$PYTHON" -I -m compileall -q -s "$target/pcinuma.new" -p "$LIB/pcinuma" "$target/pcinuma.new"
        fi
        local what=new
        if [ -d "$target/pcinuma" ]; then
            what=replaced
            mv "$target/pcinuma" "$target/pcinuma.old"
        fi
        mv "$target/pcinuma.new" "$target/pcinuma"
        rm -rf "$target/pcinuma.old"
        CHANGED+=("$LIB/pcinuma")
        did "$LIB/pcinuma ($what)"
    fi
    for pair in "${LAUNCHERS[@]}"; do
        name=${pair%%:*}
        put 0755 "/usr/bin/$name" <<TEXT
#!/usr/bin/python3 -I
# $name on the distribution's Python, deaf to the environment's and the user's own Python paths.
import sys

sys.path.insert(0, "$LIB")
from ${pair#*:} import main

sys.exit(main())
TEXT
    done
    # So that a host can be taken down when the checkout is gone.
    [ "$SOURCE" = "$target" ] || put 0755 "$LIB/install.sh" <"$SOURCE/install.sh"
}

step_files() {
    local unit
    for unit in "${UNIT_FILES[@]}"; do
        put 0644 "$UNITS/$unit" <"$SOURCE/systemd/$unit"
    done
    put 0644 /usr/lib/tmpfiles.d/pcinuma.conf <"$SOURCE/systemd/pcinuma.tmpfiles"
    put 0644 /usr/share/man/man8/pcinuma.8 <"$SOURCE/man/pcinuma.8"
    put 0644 /usr/share/man/man5/pcinuma.conf.5 <"$SOURCE/man/pcinuma.conf.5"
    put 0644 /usr/share/bash-completion/completions/pcinuma <"$SOURCE/completion/pcinuma.bash"
    mkdir -p "$ROOT/etc/pcinuma/pcinuma.conf.d"
    if [ ! -e "$ROOT/etc/pcinuma/pcinuma.conf" ]; then
        put 0644 /etc/pcinuma/pcinuma.conf <"$SOURCE/config/pcinuma.conf"
    fi
}

# Prints the path that our hook has or may have; nothing where there is no room for it.
hook_place() {
    local main=$HOOKS/qemu beside=$HOOKS/qemu.d/pcinuma
    if hook_is_ours "$ROOT$beside"; then
        echo "$beside"
    elif hook_is_ours "$ROOT$main"; then
        echo "$main"
    elif [ ! -e "$ROOT$main" ] && [ ! -L "$ROOT$main" ]; then
        echo "$main"
    elif [ ! -e "$ROOT$beside" ] && [ ! -L "$ROOT$beside" ]; then
        echo "$beside"
    fi
}

step_hook() {
    local place since=""
    place=$(hook_place)
    if [ -z "$place" ]; then
        note "$HOOKS/qemu and $HOOKS/qemu.d/pcinuma are both somebody else's, so the hook is not installed; domains are placed all the same when they are defined, but 'required' cannot refuse a start"
        return
    fi
    # The file's time says since when a hook of ours is there, whatever its version: a libvirt that started later knows it.
    if [ -e "$ROOT$place" ]; then
        since=$(stat -c %y "$ROOT$place")
    fi
    put 0755 "$place" <"$SOURCE/hook/qemu"
    if [ -n "$since" ] && changed "$place"; then
        touch -d "$since" "$ROOT$place"
    fi
    if [ "$place" != "$HOOKS/qemu" ] && [ -e "$ROOT$HOOKS/qemu" ]; then
        changed "$place" && note "$HOOKS/qemu is somebody else's and stays as it is; pcinuma's hook is $place beside it"
    fi
    return 0
}

step_selinux() {
    if ! have selinuxenabled || ! selinuxenabled; then
        return 0
    fi
    STEP="labelling the files for SELinux"
    local place
    place=$(hook_place)
    quietly restorecon -R "$LIB" /usr/bin/pcinuma /usr/bin/pcinumad /usr/bin/pcinuma-proxy "$UNITS"/pcinuma* /etc/pcinuma "${place:-$LIB}"
    if have getsebool && [ "$(getsebool virt_hooks_unconfined 2>/dev/null)" = "virt_hooks_unconfined --> off" ]; then
        note "SELinux keeps libvirt's hooks from reaching the daemon; allow it with: setsebool -P virt_hooks_unconfined on"
    fi
}

# --- the running system -----------------------------------------------------------------------------------------------

# libvirt looks for hooks when it starts and when it is told to reload. A daemon that has neither done since our hook is
# there does not call it.
step_libvirt() {
    local place pid name since boot ticks
    place=$(hook_place)
    [ -n "$place" ] || return 0
    since=$(stat -c %Y "$place")
    boot=$(sed -n 's/^btime //p' /proc/stat)
    ticks=$(getconf CLK_TCK)
    for name in libvirtd virtqemud; do
        for pid in $(pids_of "$name" "$place"); do
            STEP="telling $name (pid $pid) to look for hooks"
            [ $((boot + $(start_of "$pid") / ticks)) -le "$since" ] || continue
            ! grep -qxF "$pid $(start_of "$pid")" "$SEEN" 2>/dev/null || continue
            if systemd_runs && [ "$(systemctl show -p MainPID --value "$name.service")" = "$pid" ]; then
                quietly systemctl reload "$name.service"
            else
                kill -HUP "$pid"
            fi
            mkdir -p "$(dirname "$SEEN")"
            printf '%s %s\n' "$pid" "$(start_of "$pid")" >>"$SEEN"
            did "$name reloaded, so that it sees the hook (guests keep running)"
        done
    done
    if ! systemd_runs && [ -z "$(pids_of libvirtd "$place")$(pids_of virtqemud "$place")" ]; then
        if have libvirtd; then
            BY_HAND=("virtlogd -d" "libvirtd -d" ${BY_HAND[@]+"${BY_HAND[@]}"})
        elif have virtqemud; then
            BY_HAND=("virtlogd -d" "virtqemud -d" ${BY_HAND[@]+"${BY_HAND[@]}"})
        fi
    fi
    if ! have libvirtd && ! have virtqemud; then
        note "this host's libvirt runs elsewhere (a container) and has hooks of its own: put $SOURCE/hook/qemu into its $HOOKS, /run/pcinuma too, and have it reload"
    fi
}

step_daemon() {
    local pids
    if ! systemd_runs; then
        STEP="making /run/pcinuma"
        mkdir -p /run/pcinuma
        pids=$(pids_of pcinumad /usr/bin/pcinumad | tr '\n' ' ')
        if [ -z "$pids" ]; then
            BY_HAND+=("setsid -f /usr/bin/pcinumad >>/var/log/pcinumad.log 2>&1 </dev/null")
        elif changed '/usr/*'; then
            note "no systemd runs here: restart pcinumad (pid $pids) to run the new version"
        fi
        return 0
    fi
    STEP="starting pcinuma.service"
    if changed "$UNITS/*"; then
        quietly systemctl daemon-reload
    fi
    quietly systemd-tmpfiles --create /usr/lib/tmpfiles.d/pcinuma.conf
    quietly systemctl enable pcinuma.socket pcinuma.service
    if systemctl -q is-active pcinuma.service; then
        if changed "$LIB/pcinuma" || changed '/usr/bin/*' || changed "$UNITS/pcinuma.*"; then
            quietly systemctl restart pcinuma.service
            did "pcinuma.service restarted"
        fi
    else
        quietly systemctl start pcinuma.socket
        if ! quietly systemctl start pcinuma.service; then
            journalctl -q -u pcinuma.service -n 5 --no-pager >&2 || true
            die "pcinuma.service does not start; see: systemctl status pcinuma"
        fi
        did "pcinuma.service started and enabled"
    fi
    if systemctl -q is-active pcinuma-proxy.service && { changed "$LIB/pcinuma" || changed "$UNITS/pcinuma-proxy.*"; }; then
        quietly systemctl restart pcinuma-proxy.service
        did "pcinuma-proxy.service restarted (its clients connect anew)"
    fi
}

step_next() {
    local line nodes
    STEP="saying what to do next"
    if [ ${#DID[@]} -eq 0 ]; then
        echo "Everything is in place already; nothing was changed."
    else
        echo "pcinuma $VERSION is installed."
    fi
    # Only of use where there is something to tell apart.
    nodes=(/sys/devices/system/node/node[0-9]*)
    if [ ${#nodes[@]} -le 1 ]; then
        note "this host has one NUMA node, so guests see no difference; $0 --demo shows one on a virtual two-socket host"
    fi
    for line in ${NOTES[@]+"${NOTES[@]}"}; do
        printf 'Note: %s.\n' "$line"
    done
    if [ ${#BY_HAND[@]} -gt 0 ]; then
        echo "No systemd runs here, so nothing was started. To start it now, or whenever this host starts:"
        printf '  %s\n' "${BY_HAND[@]}"
    fi
    cat <<TEXT
Next:
  pcinuma check             is this host ready?
  pcinuma status            the domains, and where each one's devices are
  pcinuma enable DOMAIN     take in a domain that was defined before pcinuma came (they are left alone)
TEXT
}

# --- taking it down ---------------------------------------------------------------------------------------------------

# The definitions on this host that still hold a placement of ours.
placed_definitions() {
    grep -lE 'urn:pcinuma:domain:1' /etc/libvirt/qemu/*.xml 2>/dev/null | xargs -r -d '\n' grep -lE '<([A-Za-z0-9_]+:)?placement[ />]' || true
}

step_revert() {
    [ -x /usr/bin/pcinuma ] || return 0
    STEP="reverting placed domains"
    local output code=0 attempt
    if ! have_libvirt && [ -z "$(placed_definitions)" ]; then
        return 0
    fi
    # The daemon may not have found back yet to a libvirt that was just restarted; its pauses are ten seconds at most.
    for attempt in 1 2 3 4 5; do
        code=0
        output=$(/usr/bin/pcinuma revert --all 2>&1 </dev/null) || code=$?
        if [ "$code" -eq 0 ] || [ "$attempt" -eq 5 ] || ! libvirt_answers; then
            break
        fi
        sleep 3
    done
    [ -z "$output" ] || printf '%s\n' "$output" | sed 's/^/  /'
    if [ "$code" -ne 0 ] && [ -z "$(placed_definitions)" ] && ! libvirt_answers; then
        # No libvirt to ask, and no definition with a placement: nothing to revert.
        code=0
    fi
    if [ "$code" -ne 0 ] || [ -n "$(placed_definitions)" ]; then
        if [ "$FORCE" = no ]; then
            die "a placed domain could not be reverted, so nothing was removed; mend that, or go on with --force (such a domain starts all the same, and keeps its layout)"
        fi
        note "not reverted, and left as they are: $(placed_definitions | sed 's|.*/||; s|\.xml$||' | tr '\n' ' ')"
    elif [[ $output == *": "*reverted* ]]; then
        did "placed domains reverted"
    fi
}

libvirt_answers() {
    "$PYTHON" -I -c 'import libvirt; libvirt.openReadOnly("qemu:///system")' >/dev/null 2>&1
}

step_proxy_off() {
    [ -x /usr/bin/pcinuma ] || return 0
    compgen -G '/etc/systemd/system/*.d/*pcinuma*' >/dev/null || compgen -G '/etc/systemd/system/pcinuma-proxy-*' >/dev/null || return 0
    STEP="taking the proxy off libvirt's socket"
    if quietly /usr/bin/pcinuma proxy disable; then
        did "proxy disabled"
    elif [ "$FORCE" = no ]; then
        die "the proxy could not be taken off libvirt's socket, so nothing was removed; mend that, or go on with --force"
    fi
}

step_stop() {
    local name pid
    if systemd_runs && [ -e "$UNITS/pcinuma.service" ]; then
        STEP="stopping the services"
        quietly systemctl disable --now pcinuma-proxy.socket pcinuma-proxy.service pcinuma.socket pcinuma.service
        did "services stopped and disabled"
    fi
    for name in pcinumad pcinuma-proxy; do
        for pid in $(pids_of "$name" "/usr/bin/$name"); do
            STEP="stopping $name (pid $pid)"
            kill "$pid"
            # It writes its state once more before it ends.
            for _ in {1..75}; do
                kill -0 "$pid" 2>/dev/null || break
                sleep 0.2
            done
            did "$name stopped (pid $pid)"
        done
    done
}

# take PATH...: removes what is there, and says so.
take() {
    local path
    for path in "$@"; do
        if [ -e "$ROOT$path" ] || [ -L "$ROOT$path" ]; then
            STEP="removing $ROOT$path"
            rm -rf -- "$ROOT$path"
            did "$path removed"
        fi
    done
}

uninstall() {
    local place unit packages=""
    if [ -z "$ROOT" ]; then
        step_proxy_off
        step_revert
        step_stop
        packages=$(sort -u "$LIB/installed-packages" 2>/dev/null | tr '\n' ' ' || true)
    fi
    for place in "$HOOKS/qemu" "$HOOKS/qemu.d/pcinuma"; do
        if hook_is_ours "$ROOT$place"; then
            take "$place"
        fi
    done
    rmdir "$ROOT$HOOKS/qemu.d" 2>/dev/null || true
    for unit in "${UNIT_FILES[@]}"; do
        take "$UNITS/$unit"
    done
    if systemd_runs; then
        STEP="telling systemd"
        quietly systemctl daemon-reload
    fi
    take /usr/lib/tmpfiles.d/pcinuma.conf /usr/share/man/man8/pcinuma.8 /usr/share/man/man5/pcinuma.conf.5 \
        /usr/share/bash-completion/completions/pcinuma /usr/bin/pcinuma /usr/bin/pcinumad /usr/bin/pcinuma-proxy \
        "$LIB" /run/pcinuma /var/lib/pcinuma
    if [ "$PURGE" = yes ]; then
        take /etc/pcinuma
    fi
    if [ ${#DID[@]} -eq 0 ]; then
        echo "Nothing of pcinuma is installed here."
    else
        echo "pcinuma is removed."
        if [ -d "$ROOT/etc/pcinuma" ]; then
            echo "The configuration in /etc/pcinuma stays; --purge removes it too."
        fi
        if [ -n "$packages" ]; then
            echo "These packages were installed for it and stay: $packages"
        fi
    fi
    local line
    for line in ${NOTES[@]+"${NOTES[@]}"}; do
        printf 'Note: %s.\n' "$line"
    done
}

# --- the demonstration ------------------------------------------------------------------------------------------------

demo() {
    local item
    [ -e "$SOURCE/pcinuma/__main__.py" ] || die "run it from a checkout of pcinuma"
    if [ "$PACKAGES" = yes ]; then
        find_package_tool
        want_python
        have_libvirt || want_libvirt
        have_qemu || want_qemu
        if [ "$TOOL" = apt ]; then
            for item in busybox-static dbus iproute2 kmod xz-utils zstd; do
                [ "$(dpkg-query -W -f '${db:Status-Status}' "$item" 2>/dev/null)" = installed ] || WANTED+=("$item")
            done
        fi
        install_packages
        # The demonstration fetches a kernel, and for that apt has to know one.
        if [ "$TOOL" = apt ] && ! apt-cache show linux-image-amd64 >/dev/null 2>&1; then
            quietly apt-get -q update || true
        fi
    fi
    check_python
    STEP="" # from here on the demonstration speaks for itself
    cd "$SOURCE"
    exec "$PYTHON" -B -m pcinuma demo "$@"
}

# --- main -------------------------------------------------------------------------------------------------------------

COMMAND_LINE="$0${*:+ $*}" ROOT="" ACTION=install PACKAGES=yes LIVE=yes PURGE=no FORCE=no TOOL="" CHANGED=() DEMO_ARGS=()

while [ $# -gt 0 ]; do
    case $1 in
        --help | -h)
            usage
            exit 0
            ;;
        --no-packages) PACKAGES=no ;;
        --root | --root=*)
            if [ "$1" = --root ]; then
                [ $# -ge 2 ] || usage_error "--root needs a directory"
                shift
                ROOT=$1
            else
                ROOT=${1#--root=}
            fi
            [ -n "$ROOT" ] || usage_error "--root needs a directory"
            LIVE=no
            ;;
        --uninstall) ACTION=uninstall ;;
        --purge) ACTION=uninstall PURGE=yes ;;
        --force) FORCE=yes ;;
        --demo)
            ACTION=demo
            shift
            DEMO_ARGS=("$@")
            break
            ;;
        *) usage_error "unknown option '$1'" ;;
    esac
    shift
done

[ "$LIVE" = yes ] || [ "$ACTION" != demo ] || usage_error "--demo and --root do not go together"
[ "$FORCE" = no ] || [ "$ACTION" = uninstall ] || usage_error "--force goes with --uninstall or --purge only"
[ "$LIVE" = no ] || [ "$(id -u)" -eq 0 ] || die "must be run as root, for example: sudo $COMMAND_LINE"
trap broke_off EXIT

if [ "$LIVE" = no ]; then
    STEP="making $ROOT"
    mkdir -p "$ROOT"
    ROOT=$(cd "$ROOT" && pwd)
    [ "$ROOT" != / ] || usage_error "--root is for staging; leave it out to install on this system"
fi

case $ACTION in
    demo) demo ${DEMO_ARGS[@]+"${DEMO_ARGS[@]}"} ;;
    uninstall)
        echo "Removing pcinuma${ROOT:+ from $ROOT}"
        uninstall
        ;;
    install)
        [ -d "$SOURCE/systemd" ] || die "this copy can only --uninstall or --purge; install from a checkout of pcinuma"
        VERSION=$(sed -n 's/^__version__ *= *"\(.*\)".*/\1/p' "$SOURCE/pcinuma/__init__.py")
        if [ "$LIVE" = no ]; then
            echo "Staging pcinuma $VERSION in $ROOT"
            step_program
            step_files
            step_hook
            for line in ${NOTES[@]+"${NOTES[@]}"}; do
                printf 'Note: %s.\n' "$line"
            done
        else
            echo "Installing pcinuma $VERSION"
            step_packages
            step_program
            step_files
            step_hook
            step_selinux
            step_daemon
            step_libvirt
            step_next
        fi
        ;;
esac
STEP=""
