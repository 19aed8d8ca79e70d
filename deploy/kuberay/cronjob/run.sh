#!/bin/sh
# One scheduled run: create the RayJob of this name, follow it, and tell how it ended.
#   sh run.sh NAME       needs kubectl, /etc/upl-rayjob/rayjob.yaml and its changes, /etc/upl-schedule/NAME.yaml
# Exit status 0 only if the Ray job SUCCEEDED: a job that was stopped is `Complete` for KubeRay, too.
set -eu
name=$1

# `Deployment/Job`: empty if there is no such RayJob, `/` before KubeRay has seen it, in the end `Complete/SUCCEEDED`;
# `ValidationFailed/` is an end, too: KubeRay does not try such a RayJob again.
# A request that fails is no answer: it ends the run, but not while following.
stage() {
  kubectl get rayjob "$name" --ignore-not-found --output jsonpath='{.status.jobDeploymentStatus}/{.status.jobStatus}'
}

now=$(stage)
case "$now" in
  '') ;;
  Complete/* | Failed/* | ValidationFailed/*) kubectl delete rayjob "$name" --ignore-not-found ;;
  *) echo "RayJob $name is still at work ($now): nothing was started" >&2; exit 1 ;;
esac

kubectl patch --local --filename /etc/upl-rayjob/rayjob.yaml --type merge \
  --patch-file "/etc/upl-schedule/$name.yaml" --output yaml | kubectl create --filename -

while :; do
  sleep "${INTERVAL_S:-30}"
  now=$(stage) || continue
  case "$now" in
    Complete/SUCCEEDED) echo "RayJob $name: $now"; exit 0 ;;
    Complete/* | Failed/* | ValidationFailed/*) echo "RayJob $name: $now" >&2; exit 1 ;;
    '') echo "RayJob $name was deleted" >&2; exit 1 ;;
  esac
done
