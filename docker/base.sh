#!/bin/sh
# Base images for a machine that reaches Debian's packages and no registry of images (continuous integration): NAME, a
# small Debian with Python 3.11, and NAME-build, the same with this machine's certificates and settings of pip, for
# BUILD_IMAGE. Needs root, debootstrap and an engine:  docker/base.sh calm-base
set -eu
name=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$folder/base" > "$folder/log" 2>&1 ||
    { tail -n 20 "$folder/log" >&2; exit 1; }
for unused in var/cache/apt/archives var/lib/apt/lists var/log usr/share/doc usr/share/man usr/share/locale; do
    find "$folder/base/$unused" -mindepth 1 -delete
done
tar --create --directory "$folder/base" . | docker import - "$name" > /dev/null

mkdir -p "$folder/build/files/etc/ssl/certs"
cp /etc/ssl/certs/ca-certificates.crt "$folder/build/files/etc/ssl/certs/"
python3 -m pip config list | python3 -c '
import ast, os, shutil, sys
settings = {}
for line in sys.stdin:  # ":env:.find-links=..." comes before "global.find-links=..."
    name, _, value = line.strip().partition("=")
    settings.setdefault(name.rpartition(".")[2], ast.literal_eval(value))
print("[global]\ncert = /etc/ssl/certs/ca-certificates.crt")
for name in {"index-url", "extra-index-url", "find-links", "trusted-host", "timeout"} & settings.keys():
    print(name, "=", settings[name])
for folder in filter(os.path.isdir, settings.get("find-links", "").split()):
    shutil.copytree(folder, sys.argv[1] + os.path.realpath(folder))
' "$folder/build/files" > "$folder/build/files/etc/pip.conf"
printf 'FROM %s\nCOPY files /\n' "$name" > "$folder/build/Dockerfile"
docker build --quiet --tag "$name-build" "$folder/build" > /dev/null
