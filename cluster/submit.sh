#!/usr/bin/env bash
# Run a command as a job of a Ray cluster, follow it to its end, and end with the command's own exit code, of which
# `ray job submit` makes 0 or 1. RAY_API_SERVER_ADDRESS and RAY_AUTH_TOKEN say where.
#
#   cluster/submit.sh NAME COMMAND...
#
# Started again under the same NAME, it follows the job that is still running; where that one failed, it submits anew.
# Ended by TERM, it stops the job.
set -uo pipefail

name=${1:?submit.sh NAME COMMAND...}
shift
patience=${SUBMIT_PATIENCE:-10} # seconds between two looks, and a 30th of how long a silent cluster is asked
number=1                        # Ray wants another id for each attempt
ours=false                      # whether this process saw the job alive
silent=0

trap 'trap - TERM INT; ray job stop "$name-$number"; exit 143' TERM INT

# In the background, since bash runs no trap before a command in the foreground has ended.
follow() { ray job logs --follow "$1" & wait $!; }

while true; do
    job=$name-$number
    said=$(ray job status "$job" 2>&1)
    case $said in
        *"Job '$job' succeeded"*) code=0 ;;
        *"Job '$job' failed"*"failed with exit code "*) code=${said#*failed with exit code } code=${code%%[!0-9]*} code=${code:-1} ;; # below 0: a signal
        *"Job '$job' failed"* | *"Job '$job' was stopped"*) # its driver was killed, with the head perhaps
            echo "$said" >&2
            code=1
            ;;
        *"Status for job '$job'"*)
            ours=true silent=0
            follow "$job"
            sleep "$patience" # a job ends a moment after its log
            continue
            ;;
        *"does not exist"*)
            ours=true
            ray job submit --no-wait --submission-id "$job" -- "$@" || sleep "$patience"
            ((silent += 1))
            ((silent > 30)) && exit 1
            continue
            ;;
        *AuthenticationError*) # a later start may be given another token, this one will not
            echo "submit.sh: $job: the cluster refuses the token (RAY_AUTH_TOKEN): ${said##*$'\n'}" >&2
            exit 1
            ;;
        *)
            echo "submit.sh: $job: the cluster does not answer: ${said##*$'\n'}" >&2
            ((silent += 1))
            ((silent > 30)) && exit 1
            sleep "$patience"
            continue
            ;;
    esac
    # An end that an earlier process should have told, but for a failure, which this one is to make good.
    if $ours || [[ $code == [023] ]]; then
        [[ $code == 0 ]] || echo "submit.sh: $job ended with exit code $code" >&2
        exit "$code"
    fi
    ((number += 1))
done
