#!/bin/sh
# Print the Secrets of this overlay with new random passwords: sh secrets.sh | kubectl create --namespace calm --filename -
# `create` leaves those that are there as they are: the database keeps the password that it began with.
set -eu

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

secret() { # NAME KEY VALUE [KEY VALUE ...]
    printf -- '---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: %s\n  labels:\n    app.kubernetes.io/part-of: calm-pipelines\nstringData:\n' "$1"
    shift
    while [ $# -gt 0 ]; do
        printf "  %s: '%s'\n" "$1" "$2"
        shift 2
    done
}

identity() { # NAME ACCESS_KEY SECRET_KEY ACTIONS
    printf '{"name":"%s","credentials":[{"accessKey":"%s","secretKey":"%s"}],"actions":[%s]}' "$@"
}

on() { # BUCKET: what a client of one bucket does there
    printf '"Read:%s","Write:%s","List:%s","Tagging:%s"' "$1" "$1" "$1" "$1"
}

password=$(random)
admin=$(random) runs=$(random) server=$(random)

secret calm-credentials AWS_ACCESS_KEY_ID calm-runs AWS_SECRET_ACCESS_KEY "$runs"
secret mlflow-credentials AWS_ACCESS_KEY_ID mlflow AWS_SECRET_ACCESS_KEY "$server" \
    MLFLOW_BACKEND_STORE_URI "postgresql://mlflow:$password@postgres:5432/mlflow"
secret postgres-credentials POSTGRES_PASSWORD "$password"
secret seaweedfs-credentials AWS_ACCESS_KEY_ID admin AWS_SECRET_ACCESS_KEY "$admin" identities.json \
    "{\"identities\":[$(identity admin admin "$admin" '"Admin"'),$(identity runs calm-runs "$runs" "$(on calm)"),$(identity mlflow mlflow "$server" "$(on mlflow)")]}"
