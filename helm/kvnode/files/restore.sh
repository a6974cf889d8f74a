# Put a snapshot into a new cluster. Refused where there are keys already. SNAPSHOT may be a folder: its newest one.
if [ -d "$SNAPSHOT" ]; then
    SNAPSHOT=$(ls -1 "$SNAPSHOT"/*.snap | sort | tail -n 1)
fi
kvnode snapshot inspect "$SNAPSHOT"
tries=0
until keys=$(kvnode kv list --output json ""); do
    tries=$((tries + 1))
    [ "$tries" -lt 120 ] || { echo "the cluster does not answer" >&2; exit 1; }
    sleep 2
done
[ "$keys" = "[]" ] || { echo "refused: the cluster holds keys already; restore by hand: kvnode snapshot restore" >&2; exit 1; }
kvnode snapshot restore "$SNAPSHOT"
