#!/bin/sh
# Starts rspamd as CONTRACT.md asks. Its first start compiles its expressions, 7 to 9 s: the slot passes its handshake after that.
set -eu
socket=${SEKIMORI_ENGINE_SOCKET:?the pod names the socket here: see CONTRACT.md}
mkdir -p /tmp/run /tmp/db /tmp/log /tmp/local
# A socket that an earlier process left would keep the new one from binding.
rm -f "$socket"
# Networks that filter rspamd's own lookups: it must not ask lists that the pod may not reach. RSPAMD_NETWORK=yes leaves them on.
if [ "${RSPAMD_NETWORK:-no}" != yes ]; then
    mkdir -p /tmp/local/local.d
    for module in rbl fuzzy_check asn mx_check; do echo 'enabled = false;' > "/tmp/local/local.d/$module.conf"; done
fi
exec rspamd -f -c /etc/sekimori/rspamd.conf \
    --var=RUNDIR=/tmp/run --var=DBDIR=/tmp/db --var=LOGDIR=/tmp/log --var=LOCAL_CONFDIR=/tmp/local --var="SOCKET=$socket"
