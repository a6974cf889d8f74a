# Write, read from every pod, hand leadership over, read again. PODS and VALUE come from the pod.
key=helm-test/$VALUE
leader() { kvnode members --output json | python3 -c 'import json, sys; print(*[m["name"] for m in json.load(sys.stdin) if m["leader"]])'; }
read_everywhere() {
    for pod in $PODS; do
        found=$(kvnode kv get --http-addr "$pod" "$key")
        [ "$found" = "$VALUE" ] || { echo "$pod answered '$found'" >&2; exit 1; }
    done
    echo "every pod has it"
}

kvnode kv put "$key" "$VALUE"
read_everywhere
before=$(leader)
case $PODS in
*" "*)
    kvnode operator raft transfer-leader
    tries=0
    while after=$(leader) && { [ -z "$after" ] || [ "$after" = "$before" ]; }; do
        tries=$((tries + 1))
        [ "$tries" -lt 30 ] || { echo "$before still leads" >&2; exit 1; }
        sleep 1
    done
    echo "$before handed over to $after"
    read_everywhere
    ;;
esac
kvnode kv delete "$key"
echo "kvnode works"
