{{/* The alerts that are not disabled, with everybody's labels. */}}
{{- define "kvnode.alerts" -}}
{{- $rule := .Values.metrics.prometheusRule -}}
{{- $chosen := list -}}
{{- range include "kvnode.allAlerts" . | fromYamlArray -}}
{{- if not (has .alert $rule.disabled) -}}
{{- $chosen = append $chosen (set . "labels" (merge .labels $rule.alertLabels)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $chosen -}}
{{- end -}}

{{- define "kvnode.allAlerts" -}}
{{- $pods := printf "namespace=%q,pod=~\"%s-[0-9]+\"" .Release.Namespace (include "kvnode.fullname" .) -}}
{{- $rule := .Values.metrics.prometheusRule -}}
- alert: KvnodeNoLeader
  expr: >-
    sum by (namespace) (kvnode_raft_is_leader{ {{- $pods -}} }) == 0
    or absent(kvnode_raft_is_leader{ {{- $pods -}} }) == 1
  for: 1m
  labels:
    severity: critical
  annotations:
    summary: kvnode in {{`{{ $labels.namespace }}`}} has no leader
    description: >-
      No node leads: nothing can be written, and only stale reads are answered. Is a majority of the pods
      running, and can they reach each other on port {{ .Values.ports.raft }}? `GET /health/ready` of each pod says what it lacks.
- alert: KvnodeNodeWithoutLeader
  expr: kvnode_raft_leader_lost_seconds{ {{- $pods -}} } > 30
  for: 1m
  labels:
    severity: warning
  annotations:
    summary: {{`"{{ $labels.pod }} knows no leader"`}}
    description: The node has not heard of a leader for {{`{{ $value | humanizeDuration }}`}}; the others may have one.
- alert: KvnodeMemberUnreachable
  expr: >-
    (kvnode_raft_members{ {{- $pods -}} } - 1 - kvnode_raft_peers_connected{ {{- $pods -}} })
    * kvnode_raft_is_leader{ {{- $pods -}} } > 0
  for: 10m
  labels:
    severity: warning
  annotations:
    summary: {{`"{{ $value }} members are out of reach of the leader {{ $labels.pod }}"`}}
    description: >-
      A pod is down, or it was scaled away without its member being removed: then
      `kvnode operator raft list-peers` shows it, and `kvnode operator raft remove-peer --name NAME` removes it.
- alert: KvnodeNoFailureTolerated
  expr: >-
    (kvnode_raft_peers_connected{ {{- $pods -}} } + 1 <= floor(kvnode_raft_voters{ {{- $pods -}} } / 2) + 1)
    and kvnode_raft_is_leader{ {{- $pods -}} } == 1 and kvnode_raft_voters{ {{- $pods -}} } > 2
  for: 5m
  labels:
    severity: critical
  annotations:
    summary: kvnode in {{`{{ $labels.namespace }}`}} loses its quorum with the next pod
    description: The leader reaches just enough members for a majority. Do not drain or restart anything but what is broken.
- alert: KvnodeEvenVoters
  expr: >-
    kvnode_raft_voters{ {{- $pods -}} } and kvnode_raft_voters{ {{- $pods -}} } % 2 == 0
    and kvnode_raft_is_leader{ {{- $pods -}} } == 1
  for: 1h
  labels:
    severity: info
  annotations:
    summary: kvnode in {{`{{ $labels.namespace }}`}} has {{`{{ $value }}`}} voters, an even number
    description: It tolerates no more failures than with one voter less, and every write waits for one more.
- alert: KvnodeLeaderChanges
  expr: max by (namespace) (changes(kvnode_raft_term{ {{- $pods -}} }[15m])) > 4
  for: 5m
  labels:
    severity: warning
  annotations:
    summary: kvnode in {{`{{ $labels.namespace }}`}} elects again and again
    description: Look for throttled CPU, a slow disk, or a network that loses packets.
- alert: KvnodeFollowerBehind
  expr: kvnode_raft_follower_lag{ {{- $pods -}} } > 10000
  for: 10m
  labels:
    severity: warning
  annotations:
    summary: {{`"{{ $labels.member }} is {{ $value }} entries behind"`}}
    description: A follower that falls out of the log needs a snapshot. Is its disk slower than the others'?
- alert: KvnodeVolumeFull
  expr: kvnode_volume_free_bytes{ {{- $pods -}} } < {{ $rule.volumeFreeBytes | int64 }} or kvnode_log_spare_missing{ {{- $pods -}} } == 1
  for: 5m
  labels:
    severity: critical
  annotations:
    summary: {{`"the volume of {{ $labels.pod }} is nearly full"`}}
    description: Writes are refused before a volume is full. Delete keys or grow the volume.
- alert: KvnodeVolumeFillsUp
  expr: predict_linear(kvnode_volume_free_bytes{ {{- $pods -}} }[6h], 3 * 86400) < 0
  for: 1h
  labels:
    severity: warning
  annotations:
    summary: {{`"the volume of {{ $labels.pod }} will be full in three days"`}}
    description: By the trend of the last six hours.
- alert: KvnodeSlow
  expr: >-
    histogram_quantile(0.99, sum by (namespace, pod, le)
    (rate(kvnode_http_request_duration_seconds_bucket{ {{- $pods -}} }[5m]))) > {{ $rule.latencySeconds }}
  for: 10m
  labels:
    severity: warning
  annotations:
    summary: {{`"{{ $labels.pod }} answers slowly"`}}
    description: One request in a hundred takes longer than {{`{{ $value | humanizeDuration }}`}}.
- alert: KvnodeErrors
  expr: >-
    sum by (namespace, pod) (rate(kvnode_http_requests_total{ {{- $pods -}},status=~"5.."}[5m]))
    / sum by (namespace, pod) (rate(kvnode_http_requests_total{ {{- $pods -}} }[5m])) > 0.05
  for: 10m
  labels:
    severity: warning
  annotations:
    summary: {{`"{{ $labels.pod }} answers {{ $value | humanizePercentage }} of its requests with an error"`}}
    description: Mostly this means no leader, or overload.
- alert: KvnodeOverloaded
  expr: rate(kvnode_http_rejected_total{ {{- $pods -}} }[5m]) > 0
  for: 10m
  labels:
    severity: warning
  annotations:
    summary: {{`"{{ $labels.pod }} refuses requests"`}}
    description: A bound on connections or on requests under way was reached.
- alert: KvnodeIdentityConflict
  expr: increase(kvnode_peers_identity_conflicts_total{ {{- $pods -}} }[15m]) > 0
  labels:
    severity: critical
  annotations:
    summary: {{`"two processes use the identity of one node, as seen by {{ $labels.pod }}"`}}
    description: A copied volume, or a pod that was force-deleted while its node was cut off. Stop one of them.
- alert: KvnodeCertificateExpires
  expr: kvnode_tls_certificate_expiry_seconds{ {{- $pods -}} } < 7 * 86400 or kvnode_tls_ca_expiry_seconds{ {{- $pods -}} } < 7 * 86400
  for: 1h
  labels:
    severity: critical
  annotations:
    summary: {{`"the certificate of {{ $labels.pod }}, or its CA, ends in {{ $value | humanizeDuration }}"`}}
    description: Renewal should have come long ago. A new certificate is taken over without a restart.
- alert: KvnodeCertificateRefused
  expr: increase(kvnode_tls_reload_failures_total{ {{- $pods -}} }[1h]) > 0
  labels:
    severity: warning
  annotations:
    summary: {{`"{{ $labels.pod }} could not use a new {{ $labels.what }}"`}}
    description: The old one stays in force. The log (reload_refused) says what is wrong with the new one.
- alert: KvnodePeerRefused
  expr: >-
    increase(kvnode_peers_secret_refused_total{ {{- $pods -}} }[15m]) > 0
    or increase(kvnode_peers_tls_refused_total{ {{- $pods -}} }[15m]) > 0
  for: 15m
  labels:
    severity: warning
  annotations:
    summary: {{`"{{ $labels.pod }} refuses somebody on its peer port"`}}
    description: A node with another secret or certificate, or a stranger. The log (peer_secret_refused, peer_tls_refused) says who.
{{- end -}}
