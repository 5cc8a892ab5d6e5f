#!/bin/sh
# Installs the units; run again after an update. Files of yours in /etc/jobcluster stay as they are.
# DESTDIR: a folder to install below, for packages; nothing of the running system is touched then.
set -eu
cd "$(dirname "$0")"
root=${DESTDIR:-}

units=$root/etc/systemd/system
mkdir -p "$units" "$root/etc/jobcluster" "$root/usr/lib/sysusers.d" "$root/usr/lib/tmpfiles.d"
install -m 644 jobcluster@.service jobcluster-migrate.service jobcluster-dashboard.service jobcluster.slice "$units"
install -m 644 jobcluster.sysusers.conf "$root/usr/lib/sysusers.d/jobcluster.conf"
install -m 644 jobcluster.tmpfiles.conf "$root/usr/lib/tmpfiles.d/jobcluster.conf"
install -m 644 jobcluster.env.example relax.conf.example "$root/etc/jobcluster"
for name in default migrate dashboard; do
    [ -e "$root/etc/jobcluster/$name.env" ] || install -m 640 jobcluster.env.example "$root/etc/jobcluster/$name.env"
    if [ ! -e "$root/etc/jobcluster/$name.database-url" ]; then
        : >"$root/etc/jobcluster/$name.database-url"
        chmod 600 "$root/etc/jobcluster/$name.database-url"
    fi
done
# Nobody gets in with a secret that is in a manual: each machine has its own.
for name in password secret; do
    file=$root/etc/jobcluster/dashboard.$name
    if [ ! -e "$file" ]; then
        (umask 077 && od -An -tx1 -N24 /dev/urandom | tr -d ' \n' >"$file")
    fi
done
if [ -z "$root" ]; then
    systemd-sysusers jobcluster.conf
    systemd-tmpfiles --create jobcluster.conf
    systemctl daemon-reload
fi
cat <<'END'
Installed. What is left to do:
  1. python3 -m venv /opt/jobcluster && /opt/jobcluster/bin/pip install PATH/TO/jobcluster
  2. your package `jobs` in /opt/jobcluster/app
  3. the database's URL in /etc/jobcluster/default.database-url and migrate.database-url
  4. systemctl start jobcluster-migrate && systemctl enable --now jobcluster@default
  5. for the dashboard: pip install PATH/TO/jobcluster[dashboard], a URL in /etc/jobcluster/dashboard.database-url, and
     systemctl enable --now jobcluster-dashboard; user operator, password in /etc/jobcluster/dashboard.password
END
