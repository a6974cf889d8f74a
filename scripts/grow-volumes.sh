#!/bin/sh
# Grow the claims of a StatefulSet. Kubernetes refuses a new size in volumeClaimTemplates, and `helm upgrade` then leaves
# a failed revision. So: each claim is grown by itself, the StatefulSet is deleted without its pods, and the next
# `helm upgrade` (or `kubectl apply -k`) makes it anew with the new size and takes the running pods over.
#
# Usage: scripts/grow-volumes.sh NAMESPACE STATEFULSET SIZE        such as: default kvnode 5Gi
#
# Needs a StorageClass with allowVolumeExpansion. Safe to run again. KUBECTL names another kubectl.
set -eu

if [ $# -ne 3 ]; then
    sed -n 's/^# Usage: /usage: /p' "$0" >&2
    exit 2
fi
namespace=$1 name=$2 size=$3
kubectl() { "${KUBECTL:-kubectl}" --namespace "$namespace" "$@"; }

claims=$(kubectl get pvc --output name | sed 's|.*/||' | grep -E "^data-$name-[0-9]+$" || true)
if [ -z "$claims" ]; then
    echo "no claims called data-$name-N in $namespace" >&2
    exit 1
fi

# All of them, before any is touched.
for claim in $claims; do
    class=$(kubectl get pvc "$claim" --output 'jsonpath={.spec.storageClassName}')
    if [ -z "$class" ] ||
        [ "$(kubectl get storageclass "$class" --output 'jsonpath={.allowVolumeExpansion}')" != true ]; then
        echo "$claim: its StorageClass '$class' does not allow volumes to grow" >&2
        exit 1
    fi
done

for claim in $claims; do
    kubectl patch pvc "$claim" --type merge \
        --patch "{\"spec\":{\"resources\":{\"requests\":{\"storage\":\"$size\"}}}}"
done

# Orphan: the pods run on. They have no controller until the StatefulSet is back, so do not stop here.
kubectl delete statefulset "$name" --cascade=orphan --ignore-not-found

cat >&2 <<END

Now make the StatefulSet anew, with the new size:

    helm upgrade RELEASE helm/kvnode --namespace $namespace --reuse-values --set persistence.perPod.size=$size

Volumes that cannot grow while they are in use show FileSystemResizePending (kubectl describe pvc); then
restart the pods one by one: kubectl --namespace $namespace rollout restart statefulset $name
END
