#!/usr/bin/env bash
# Makes snapshots of volumes while the guests that write to them are frozen.
# Run as root on the guests' host. OS_CLOUD names a cloud of clouds.yaml.
#
# Usage: consistent-backup.sh NAME GUEST... -- VOLUME...

set -euo pipefail
limit=120
if [[ $# -lt 4 || " $* " != *' -- '* ]]; then
    sed -n 's/^# Usage/Usage/p' "$0" >&2
    exit 2
fi
name=$1
shift
guests=()
while [ "$1" != -- ]; do
    guests+=("$1")
    shift
done
shift

directory=$(mktemp -d)
freeze=
snapshots=()
failure='it was interrupted'

# Cinder deletes no snapshot that is still being made: try for a while.
delete() {
    local tries=20
    until openstack volume snapshot delete "$1" 2> "$directory/error"; do
        tries=$((tries - 1))
        if [ "$tries" -eq 0 ]; then
            cat "$directory/error" >&2
            echo "Delete the snapshot $1: it is not consistent." >&2
            return 0
        fi
        sleep 3
    done
}

# Whatever ends this script: no guest stays frozen, no half of a backup stays.
end() {
    [ -z "$freeze" ] || kill "$freeze" 2> /dev/null || true
    if [ -n "$failure" ]; then
        for snapshot in ${snapshots[@]+"${snapshots[@]}"}; do
            delete "$snapshot"
        done
        echo "No backup was made: $failure" >&2
    fi
    rm -r "$directory"
}
trap end EXIT

# It thaws the guests when it is told to end, and when the time is up.
started=$SECONDS
nova-kvm-ext agent freeze "${guests[@]}" --for "$limit" -f value \
    -c frozen_until_the_end > "$directory/stood" 2> "$directory/said" &
freeze=$!
until grep -q 'frozen for' "$directory/said"; do
    if ! kill -0 "$freeze" 2> /dev/null; then
        cat "$directory/said" >&2
        failure='not all guests can be frozen'
        exit 1
    fi
    sleep 0.1
done

# From this version on also of volumes that are in use.
export OS_VOLUME_API_VERSION=3.66
bad=
for volume in "$@"; do
    if ! snapshot=$(openstack volume snapshot create --volume "$volume" \
            -f value -c id "$name-$volume"); then
        bad="there is no snapshot of volume $volume"
        break
    fi
    snapshots+=("$snapshot")
done
for snapshot in "${snapshots[@]}"; do
    status=creating
    while [ "$status" = creating ]; do
        status=$(openstack volume snapshot show -f value -c status \
            "$snapshot") || status='not known'
        if [ $((SECONDS - started)) -ge "$limit" ]; then
            bad="the snapshots were not made within $limit s"
            break 2
        fi
    done
    [ "$status" = available ] || bad="the state of $snapshot is $status"
done

# It asks the agents whether the guests were frozen until now, and thaws them.
kill "$freeze" || bad='the guests did not stay frozen'
wait "$freeze" || true
freeze=
cat "$directory/said" >&2
if grep -qvx True "$directory/stood" || [ ! -s "$directory/stood" ]; then
    bad='a guest was not frozen until the end'
fi
failure=$bad
[ -z "$failure" ] || exit 1
printf '%s\n' "${snapshots[@]}"
