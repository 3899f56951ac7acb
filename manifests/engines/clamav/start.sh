#!/bin/sh
# Starts clamd as CONTRACT.md asks: on the socket that the pod names, with signatures from the image, a mirror or a volume, and prompt to end.
set -eu
socket=${SEKIMORI_ENGINE_SOCKET:?the pod names the socket here: see CONTRACT.md}
mounted=/var/lib/sekimori/signatures
signatures=/var/lib/clamav
[ -d "$mounted" ] && signatures=$mounted
max=${CLAMAV_STREAM_MAX:-30M}

cat > /tmp/clamd.conf <<CONF
Foreground yes
LogFile /dev/stdout
LogTime no
LocalSocket $socket
LocalSocketMode 666
FixStaleSocket yes
DatabaseDirectory $signatures
TemporaryDirectory /tmp
# Not below the Engine's maxBytes; larger mail is then Unscannable(TooLarge), never silently clean.
StreamMaxLength $max
MaxScanSize ${CLAMAV_SCAN_MAX:-150M}
MaxFileSize $max
AlertExceedsMax yes
AlertEncrypted yes
MaxThreads ${CLAMAV_THREADS:-8}
# With the old and the new database in memory at once, a reload needs twice the memory; without, scans wait for it.
ConcurrentDatabaseReload ${CLAMAV_CONCURRENT_RELOAD:-no}
SelfCheck 600
CONF

children=
stop() { trap - TERM INT; for child in $children; do kill -TERM "$child" 2>/dev/null || true; done; exit 0; }
trap stop TERM INT

if [ -n "${SEKIMORI_SIGNATURES_MIRROR:-}" ]; then
    cat > /tmp/freshclam.conf <<CONF
DatabaseDirectory $signatures
PrivateMirror $SEKIMORI_SIGNATURES_MIRROR
ScriptedUpdates no
NotifyClamd /tmp/clamd.conf
PidFile /tmp/freshclam.pid
CONF
    # Without signatures clamd does not start, and the slot never passes its handshake: the stable one scans on meanwhile.
    # Beside the shell, which waits: a shell acts on no signal while a program runs in its foreground, and a first download takes minutes.
    fetch() { freshclam --stdout --config-file=/tmp/freshclam.conf & children=$!; wait "$children"; }
    until fetch; do
        echo "no signatures from $SEKIMORI_SIGNATURES_MIRROR yet; trying again in 15 s" >&2
        sleep 15 & children=$!; wait $!
    done
    freshclam --daemon --foreground --stdout --checks="${CLAMAV_CHECKS:-24}" --config-file=/tmp/freshclam.conf &
    children=$!
fi
clamd --config-file=/tmp/clamd.conf &
clamd=$!
children="$children $clamd"
# clamd's end is this container's: its status says why.
wait "$clamd"
