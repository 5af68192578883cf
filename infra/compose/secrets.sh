#!/usr/bin/env bash
# infra/compose/secrets.sh FOLDER [passwords]
#
# Makes the secrets of the stack once: FOLDER/secrets.env, for its owner alone. From it, FOLDER/secrets/ is written anew each
# time, a file for each thing that a container needs to know. To change a secret, change secrets.env and start again; one
# that a database knows must be changed there, too.
set -euo pipefail

folder=${1:?usage: infra/compose/secrets.sh FOLDER [passwords]}
file=$folder/secrets.env
names=(
    POSTGRES_PASSWORD AIRFLOW_DATABASE_PASSWORD MLFLOW_DATABASE_PASSWORD
    AIRFLOW_FERNET_KEY AIRFLOW_JWT_SECRET AIRFLOW_API_SECRET AIRFLOW_ADMIN_PASSWORD AIRFLOW_REVIEWER_PASSWORD
    MLFLOW_FORM_SECRET MLFLOW_ADMIN_PASSWORD MLFLOW_TASKS_PASSWORD
    S3_ADMIN_SECRET S3_MLFLOW_SECRET S3_TASKS_SECRET
)
fail() { echo "$1" >&2; exit 78; }

random() { head -c "$1" /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }
fernet_key() { head -c 32 /dev/urandom | base64 | tr '+/' '-_'; }

make() {
    local name
    umask 077
    for name in "${names[@]}"; do
        case $name in
        AIRFLOW_FERNET_KEY) echo "$name=$(fernet_key)" ;;
        AIRFLOW_ADMIN_PASSWORD | AIRFLOW_REVIEWER_PASSWORD | MLFLOW_ADMIN_PASSWORD) echo "$name=$(random 12)" ;; # typed by people
        *) echo "$name=$(random 32)" ;;
        esac
    done >"$file.tmp"
    mv "$file.tmp" "$file"
}

read_all() {
    local name
    [ -z "$(find "$file" -perm /077)" ] || fail "$file is open to others: chmod 600 $file"
    for name in "${names[@]}"; do
        printf -v "$name" %s "$(sed -n "s/^$name=//p" "$file" | tail -n 1)"
        check "$name" "${!name}"
    done
}

# What could be guessed, or would mean something else in an address or a settings file, is refused.
check() {
    [[ $2 =~ ^[A-Za-z0-9_=-]{20,}$ ]] || fail "$file: $1 needs 20 characters or more, of letters, digits, _, - and ="
    ! grep -qiE 'change.?me|password|secret|default|example|airflow|mlflow|(.)\1{7}' <<<"$2" || fail "$file: $1 is easy to guess; remove $file, and another one is made"
}

put() { cat >"$folder/secrets/$1"; }

write_all() {
    # Readable for all, in a folder that only its owner can enter: containers see single files, with users of their own.
    umask 022
    mkdir -p "$folder/secrets"
    printf %s "$POSTGRES_PASSWORD" | put postgres-password
    printf %s "$AIRFLOW_DATABASE_PASSWORD" | put airflow-database-password
    printf %s "$MLFLOW_DATABASE_PASSWORD" | put mlflow-database-password
    airflow_settings | put airflow-parser.cfg
    { airflow_settings; printf '[api]\nsecret_key = %s\n[api_auth]\njwt_secret = %s\n' "$AIRFLOW_API_SECRET" "$AIRFLOW_JWT_SECRET"; } | put airflow.cfg
    printf '{"admin": "%s", "reviewer": "%s"}\n' "$AIRFLOW_ADMIN_PASSWORD" "$AIRFLOW_REVIEWER_PASSWORD" | put airflow-passwords.json
    printf 'MLFLOW_BACKEND_STORE_URI=%s\nMLFLOW_FLASK_SERVER_SECRET_KEY=%s\n' "$(mlflow_database)" "$MLFLOW_FORM_SECRET" | put mlflow.env
    mlflow_accounts | put mlflow-auth.ini
    printf '[mlflow]\nmlflow_tracking_username = stillhouse\nmlflow_tracking_password = %s\n' "$MLFLOW_TASKS_PASSWORD" | put mlflow-credentials
    printf 'MLFLOW_TRACKING_USERNAME=stillhouse\nMLFLOW_TRACKING_PASSWORD=%s\n' "$MLFLOW_TASKS_PASSWORD" | put mlflow-login.env
    s3_login admin "$S3_ADMIN_SECRET" | put s3-admin
    s3_login mlflow "$S3_MLFLOW_SECRET" | put s3-mlflow
    s3_login stillhouse "$S3_TASKS_SECRET" | put s3-stillhouse
    printf '{"identities": [\n %s,\n %s,\n %s\n]}\n' "$(s3_identity admin "$S3_ADMIN_SECRET" '"Admin"')" \
        "$(s3_identity mlflow "$S3_MLFLOW_SECRET" "$(s3_bucket mlflow)")" \
        "$(s3_identity stillhouse "$S3_TASKS_SECRET" "$(s3_bucket stillhouse)")" | put s3.json
    # For tasks that fetch models or data from a package registry: the site's own settings, if any.
    put pip.conf <"${STILLHOUSE_PIP_CONF:-/dev/null}"
    put ca.pem <"${STILLHOUSE_CA:-/dev/null}"
}

airflow_settings() {
    printf '[core]\nfernet_key = %s\n' "$AIRFLOW_FERNET_KEY"
    printf '[database]\nsql_alchemy_conn = postgresql+psycopg2://airflow:%s@postgres/airflow\n' "$AIRFLOW_DATABASE_PASSWORD"
}
# Hashing a password at each request is most of a request's time; MLflow's one process forgets at once what it changes.
mlflow_accounts() {
    cat <<END
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = $(mlflow_database)
admin_username = admin
admin_password = $MLFLOW_ADMIN_PASSWORD
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 300
END
}
mlflow_database() { echo "postgresql+psycopg2://mlflow:$MLFLOW_DATABASE_PASSWORD@postgres/mlflow"; }
s3_login() { printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$1" "$2"; }
s3_bucket() { printf '"Read:%s", "Write:%s", "List:%s"' "$1" "$1" "$1"; }
s3_identity() { printf '{"name": "%s", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": [%s]}' "$1" "$1" "$2" "$3"; }

[ -f "$file" ] || make
read_all
if [ "${2:-}" = passwords ]; then
    printf 'Airflow  admin     %s\n         reviewer  %s\nMLflow   admin     %s\n' "$AIRFLOW_ADMIN_PASSWORD" "$AIRFLOW_REVIEWER_PASSWORD" "$MLFLOW_ADMIN_PASSWORD"
else
    write_all
fi
