#!/usr/bin/env bash
# Builds the CPU image without a Docker engine and runs in it: buildah, in a chroot, as root, from a
# base image made here by debootstrap, or the one that BASE names.
#
#   docker/check.sh --build-arg TORCH_INDEX=… [MORE OPTIONS OF buildah build]
#
# With PYTHON, a Python that has this project, the services of compose.yaml run in the image too, on
# hosts that are network namespaces. FOLDER keeps image and storage (a few gigabytes), and is otherwise removed.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(id -u)" = 0 ] || { echo "check.sh: must run as root, for a chroot" >&2; exit 2; }
needed=(buildah)
[ -n "${BASE:-}" ] || needed+=(debootstrap)
for tool in "${needed[@]}"; do
  command -v "$tool" >/dev/null || { echo "check.sh: needs $tool, which is not installed" >&2; exit 2; }
done
case " $* " in
  *TORCH_INDEX=*) ;;
  *) echo "check.sh: needs --build-arg TORCH_INDEX=…, the address of torch's builds for CPUs" >&2; exit 2 ;;
esac

folder=${FOLDER:-$(mktemp -d /var/tmp/robust-agg-image.XXXXXX)}
mkdir -p "$folder"
own=(buildah --root "$folder/storage" --runroot "$folder/run")
leave() {
  "${own[@]}" rm --all >/dev/null 2>&1 || true # what is mounted, too
  [ -n "${FOLDER:-}" ] || rm -rf "$folder"
}
trap leave EXIT

if [ -z "${BASE:-}" ]; then
  BASE=localhost/python:3.11-slim-bookworm
  echo "=== a base image: $BASE"
  if [ ! -d "$folder/rootfs" ]; then
    # What provides a package debootstrap does not look for: distutils is named.
    debootstrap --variant=minbase \
      --include=python3.11,python3.11-venv,python3-distutils,ca-certificates \
      bookworm "$folder/rootfs" >"$folder/debootstrap.log" \
      || { tail -n 20 "$folder/debootstrap.log" >&2; exit 1; }
  fi
  made=$("${own[@]}" from scratch)
  "${own[@]}" add --quiet "$made" "$folder/rootfs" / >/dev/null
  "${own[@]}" commit --quiet --rm "$made" "$BASE" >/dev/null
fi

echo "=== build"
"${own[@]}" build --isolation chroot --format docker --file docker/Dockerfile --target cpu \
  --build-arg "BASE=$BASE" --tag robust-agg:cpu "$@" .

echo "=== run"
made=$("${own[@]}" from --pull-never localhost/robust-agg:cpu)
inside() { "${own[@]}" run --isolation chroot "$made" -- "$@"; }
inside sh -c 'echo "as $(id -un) ($(id -u)) in $(pwd)"; test "$(id -u)" -ne 0'
inside python /opt/node_health.py
for transport in ray ranks; do
  inside robust-agg run --transport "$transport" --rounds 20 --evaluate-every 10 \
    --aggregator Mean "NearestNeighborMixing + TrimmedMean" --estimator none
done
"${own[@]}" inspect --type image --format \
  '{{.Docker.Config.User}} {{.Docker.Config.Healthcheck.Test}}' localhost/robust-agg:cpu
echo
if [ -n "${PYTHON:-}" ]; then
  echo "=== compose.yaml on hosts"
  "$PYTHON" docker/on_hosts.py "$("${own[@]}" mount "$made")"
fi
echo "=== all green"
