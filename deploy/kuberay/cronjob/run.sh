#!/bin/sh
# One scheduled run: create a RayJob, follow it, and log how it ended.
#   sh run.sh NAME [CHANGES]       CHANGES: a merge patch of /etc/upl/rayjob.yaml, which has to result in this name
# Exit status 0 only if the Ray job SUCCEEDED: a job that was stopped is `Complete` for KubeRay, too.
set -eu
name=$1
changes=${2:-"{}"}

# `Deployment/Job`: empty without such a RayJob, `/` before KubeRay has seen it, `Complete/SUCCEEDED` in the end.
# KubeRay does not try again after `ValidationFailed/`. A failed request ends the run, but not while it is followed.
stage() {
  kubectl get rayjob "$name" --ignore-not-found --output jsonpath='{.status.jobDeploymentStatus}/{.status.jobStatus}'
}

now=$(stage)
case "$now" in
  '') ;;
  Complete/* | Failed/* | ValidationFailed/*) kubectl delete rayjob "$name" --ignore-not-found ;;
  *) echo "RayJob $name is still at work ($now): nothing was started" >&2; exit 1 ;;
esac

kubectl patch --local --filename /etc/upl/rayjob.yaml --type merge --patch "$changes" --output yaml |
  kubectl create --filename -

while :; do
  sleep "${INTERVAL_S:-30}"
  now=$(stage) || continue
  case "$now" in
    Complete/SUCCEEDED) echo "RayJob $name: $now"; exit 0 ;;
    Complete/* | Failed/* | ValidationFailed/*) echo "RayJob $name: $now" >&2; exit 1 ;;
    '') echo "RayJob $name was deleted" >&2; exit 1 ;;
  esac
done
