#!/bin/sh
# One image for every command: the first word says which. exec, so that signals reach it.
set -eu
command=${1:-api}
[ $# -eq 0 ] || shift
case $command in
api) exec gunicorn --config /opt/minicnn/gunicorn.conf.py --pid /tmp/gunicorn.pid "$@" ;;
train | evaluate | predict | merge | export | batch | summary | synthetic | selfcheck)
    exec python -m "segment.$command" "$@"
    ;;
*)
    echo "error: $command: expected api, train, evaluate, predict, merge, export, batch, summary, synthetic or selfcheck" >&2
    exit 2
    ;;
esac
