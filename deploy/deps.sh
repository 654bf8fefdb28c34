#!/bin/sh
# Installs the system packages that are missing, and says which. Usage: deps.sh run|test|bench [--quiet]
# Nothing missing: no output with --quiet, and no package tool is started but the query of what is there.
set -eu

set_wanted=${1:-run}
quiet=${2:-}
python=${PYTHON:-python3}

say() { [ -n "$quiet" ] || echo "deps: $*"; }
fail() { echo "deps: $*" >&2; exit 1; }

apt_run="podman runc conmon netavark aardvark-dns catatonit nftables iptables busybox-static gocryptfs fuse3
    btrfs-progs e2fsprogs iproute2 util-linux mount procps curl ca-certificates etcd-server"
apt_test="etcd-client gcc libc6-dev"
apt_bench="haproxy wrk iperf3 nats-server supervisor runit"
dnf_run="podman runc conmon netavark aardvark-dns catatonit nftables iptables-nft busybox gocryptfs fuse3
    btrfs-progs e2fsprogs iproute util-linux procps-ng curl ca-certificates etcd"
dnf_test="gcc"
dnf_bench="haproxy iperf3 supervisor"

# The venv module comes with every Python but the one of Debian's minimal package.
python_packages() {
    if ! command -v "$python" >/dev/null 2>&1; then
        [ "$python" = python3 ] || fail "there is no $python: give another with PYTHON="
        echo "python3 python3-venv"
    elif ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
        echo "python3-venv"
    fi
}

missing_deb() {
    installed=" $(dpkg-query -W -f '${db:Status-Status} ${Package}\n' 2>/dev/null | sed -n 's/^installed //p' | tr '\n' ' ') "
    for package in "$@"; do
        case $installed in *" $package "*) ;; *) printf '%s ' "$package" ;; esac
    done
}

missing_rpm() {
    for package in "$@"; do
        rpm -q --whatprovides "$package" >/dev/null 2>&1 || printf '%s ' "$package"
    done
}

# Debian starts the services of what it installs. None of these should run by itself here; a policy that the host
# already has stays as it is.
policy=/usr/sbin/policy-rc.d
without_starting_services() {
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        trap 'exit 130' INT TERM HUP
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    "$@"
}

# An etcd of the host's own would take the ports of ours after the next boot. One that was here before is left alone.
no_service_at_boot() {
    case " $1 " in
    *" etcd-server "* | *" etcd "*) ! command -v systemctl >/dev/null 2>&1 || systemctl disable --quiet etcd.service || true ;;
    esac
}

apt_install() {
    export DEBIAN_FRONTEND=noninteractive
    # Lists that are too old name packages that the mirror has dropped: fetch them again and try once more.
    # shellcheck disable=SC2086
    if ! apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=120 "$@"; then
        say "fetching the package lists"
        apt-get update -q || true
        apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=120 "$@"
    fi
}

case $set_wanted in run | test | bench) ;; *) fail "unknown set '$set_wanted': run, test or bench" ;; esac

if command -v apt-get >/dev/null 2>&1; then
    wanted="$apt_run"
    [ "$set_wanted" = run ] || wanted="$wanted $apt_test"
    [ "$set_wanted" != bench ] || wanted="$wanted $apt_bench"
    # shellcheck disable=SC2046,SC2086
    missing=$(missing_deb $wanted)
    missing="$missing$(python_packages)"
elif command -v dnf >/dev/null 2>&1; then
    wanted="$dnf_run"
    [ "$set_wanted" = run ] || wanted="$wanted $dnf_test"
    [ "$set_wanted" != bench ] || wanted="$wanted $dnf_bench"
    # shellcheck disable=SC2046,SC2086
    missing=$(missing_rpm $wanted)
    command -v "$python" >/dev/null 2>&1 || missing="$missing python3"
else
    fail "neither apt-get nor dnf is here: install podman, runc, conmon, netavark, gocryptfs, fuse3 and a static busybox yourself"
fi

if [ -n "$missing" ]; then
    quiet=
    [ "$(id -u)" = 0 ] || fail "missing: ${missing% }: run this as root"
    say "installing: ${missing% }"
    if command -v apt-get >/dev/null 2>&1; then
        # shellcheck disable=SC2086
        without_starting_services apt_install $missing
    else
        # shellcheck disable=SC2086
        dnf install -y --setopt=install_weak_deps=False $missing
    fi
    no_service_at_boot "$missing"
    say "installed: ${missing% }"
else
    say "every system package is here"
fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old: piccolod needs 3.11 or newer; give another with PYTHON="
