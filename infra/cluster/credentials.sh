# shellcheck shell=bash
# Certificates and kubeconfig files of a cluster that infra/cluster.sh starts. New at every start.

# Usage: create_credentials ADDRESS, which is the API server's.
create_credentials() {
    local address=$1
    mkdir -p "$state/pki"
    chmod 700 "$state/pki"
    openssl req -x509 "${key_options[@]}" -days 365 -keyout "$state/pki/ca.key" -out "$state/pki/ca.crt" \
        -subj /CN=stillhouse-cluster 2>/dev/null
    # Its public half is all that is used of this certificate: it verifies the tokens of service accounts.
    openssl req -x509 "${key_options[@]}" -days 365 -keyout "$state/pki/accounts.key" -out "$state/pki/accounts.crt" \
        -subj /CN=accounts 2>/dev/null
    certify apiserver /CN=kube-apiserver \
        "DNS:localhost,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:$address,IP:127.0.0.1,IP:$services.1"
    certify kubelet "/O=system:nodes/CN=system:node:$node" "DNS:$node,IP:$address"
    certify controllers /CN=system:kube-controller-manager DNS:localhost
    certify scheduler /CN=system:kube-scheduler DNS:localhost
    certify admin /O=system:masters/CN=admin DNS:localhost
    local user
    for user in kubelet controllers scheduler; do write_kubeconfig "$user" "$address" >"$state/$user.kubeconfig"; done
    write_kubeconfig admin "$address" >"$kubeconfig"
    chmod 600 "$state"/*.kubeconfig "$kubeconfig"
}

key_options=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)

# Usage: certify NAME SUBJECT ALTERNATIVES
certify() {
    local place=$state/pki/$1
    openssl req "${key_options[@]}" -keyout "$place.key" -out "$place.csr" -subj "$2" 2>/dev/null
    openssl x509 -req -in "$place.csr" -CA "$state/pki/ca.crt" -CAkey "$state/pki/ca.key" -CAcreateserial -days 365 \
        -out "$place.crt" 2>/dev/null \
        -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$3")
    rm "$place.csr"
}

# Usage: write_kubeconfig USER ADDRESS
write_kubeconfig() {
    cat <<YAML
apiVersion: v1
kind: Config
clusters:
  - name: stillhouse
    cluster:
      server: https://$2:$port
      certificate-authority-data: $(base64 -w0 "$state/pki/ca.crt")
users:
  - name: $1
    user:
      client-certificate-data: $(base64 -w0 "$state/pki/$1.crt")
      client-key-data: $(base64 -w0 "$state/pki/$1.key")
contexts:
  - name: stillhouse
    context: {cluster: stillhouse, user: $1}
current-context: stillhouse
YAML
}
