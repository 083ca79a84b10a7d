#!/usr/bin/env bash
# Makes snapshots of volumes while the guests that write to them are frozen.
# Run as root on the guests' host. OS_CLOUD names a cloud of clouds.yaml.
#
# Usage: consistent-backup.sh NAME GUEST... -- VOLUME...

set -euo pipefail
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
trap '[ -z "$freeze" ] || kill "$freeze" 2> /dev/null || true
    rm -r "$directory"' EXIT

# It thaws the guests when it is told to end, and whatever happens after 120 s.
nova-kvm-ext agent freeze "${guests[@]}" --for 120 -f value \
    -c frozen_until_the_end > "$directory/stood" 2> "$directory/said" &
freeze=$!
until grep -q 'frozen for' "$directory/said"; do
    if ! kill -0 "$freeze" 2> /dev/null; then
        cat "$directory/said" >&2
        exit 1
    fi
    sleep 0.1
done

# From this version on also of volumes that are in use.
export OS_VOLUME_API_VERSION=3.66
snapshots=()
for volume in "$@"; do
    snapshots+=("$(openstack volume snapshot create --volume "$volume" \
        -f value -c id "$name-$volume")")
done
made=yes
for snapshot in "${snapshots[@]}"; do
    status=creating
    while [ "$status" = creating ]; do
        status=$(openstack volume snapshot show -f value -c status "$snapshot")
    done
    [ "$status" = available ] || made="snapshot $snapshot is in $status"
done

# It asks the agents whether the guests were frozen until now, and thaws them.
kill "$freeze"
wait "$freeze" || true
freeze=
cat "$directory/said" >&2
if grep -qvx True "$directory/stood" || [ ! -s "$directory/stood" ]; then
    made='a guest was not frozen until the end'
fi
if [ "$made" != yes ]; then
    openstack volume snapshot delete "${snapshots[@]}"
    echo "No backup was made: $made" >&2
    exit 1
fi
printf '%s\n' "${snapshots[@]}"
