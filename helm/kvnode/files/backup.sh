# Save a snapshot, check it, then forget old ones. Whatever fails leaves the older ones alone.
file=/backup/$NAME-$(date -u +%Y%m%dT%H%M%SZ).snap
kvnode snapshot save "$file.part"
kvnode snapshot inspect "$file.part"
mv "$file.part" "$file"
rm -f "/backup/$NAME"-*.snap.part
if [ "$KEEP" -gt 0 ]; then
    ls -1 "/backup/$NAME"-*.snap | sort -r | tail -n +$((KEEP + 1)) | while read -r old; do rm -f "$old"; done
fi
ls -l "/backup/$NAME"-*.snap
