#!/bin/bash
# An authority of this cluster alone, and keys that it signs for the scheduler, the workers and the clients:
#
#     deploy/ssh/certificates.sh FOLDER [NAME_OR_ADDRESS_OF_THE_SCHEDULER ...]
#
# FOLDER (made for its owner alone) then holds authority.pem and, for each role, ROLE.pem and ROLE.key. What is there is
# kept: called again, this makes what is missing. authority.key signs further keys and belongs on no host of the cluster.
# DAYS: how long they are valid (default: 365).
set -euo pipefail
umask 077

[ $# -ge 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
folder=$1
shift
days=${DAYS:-365}
new=(quietly openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)

quietly() { # openssl says much where all is well
    local said
    said=$("$@" 2>&1) || { echo "$said" >&2; return 1; }
}

mkdir -p "$folder"
cd "$folder"
if [ ! -e authority.key ]; then
    "${new[@]}" -x509 -days "$days" -subj "/CN=dred authority" -keyout authority.key -out authority.pem \
        -addext keyUsage=critical,keyCertSign,cRLSign
fi

# Scheduler and workers are connected to, and connect to each other; clients are not connected to.
names=$(printf '%s\n' "$@" | sed -E '/^$/d; /^[0-9.]+$|:/{s/^/IP:/;b}; s/^/DNS:/' | paste -sd, -)
for role in scheduler worker client; do
    [ -e "$role.key" ] && continue
    usage=clientAuth
    [ "$role" = client ] || usage+=,serverAuth
    {
        echo "extendedKeyUsage = $usage"
        echo "subjectKeyIdentifier = hash"
        echo "authorityKeyIdentifier = keyid"
        if [ "$role" = scheduler ] && [ -n "$names" ]; then echo "subjectAltName = $names"; fi
    } >"$role.extensions"
    "${new[@]}" -subj "/CN=dred $role" -keyout "$role.key" -out "$role.request"
    quietly openssl x509 -req -in "$role.request" -days "$days" -CA authority.pem -CAkey authority.key -CAcreateserial \
        -extfile "$role.extensions" -out "$role.pem"
    rm "$role.request" "$role.extensions"
done
