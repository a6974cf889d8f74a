{{- /*
The pod of a node, voter or read replica: (dict "root" $ "component" "server" | "reader" "headless" name "selector" map
"mode" storage mode "resources" map …).
*/ -}}
{{- define "kvnode.podSpec" -}}
{{- $selector := .selector -}}
{{- $mode := .mode -}}
{{- $reader := eq .component "reader" -}}
{{- $own := .own -}}
{{- $headless := .headless -}}
{{- with .root -}}
{{- $storage := .Values.persistence -}}
{{- $fullname := include "kvnode.fullname" . -}}
serviceAccountName: {{ include "kvnode.serviceAccountName" . | quote }}
automountServiceAccountToken: false
# A Service that is called kvnode would give every pod KVNODE_PORT and more.
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .Values.schedulerName }}
schedulerName: {{ . | quote }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with .Values.dnsPolicy }}
dnsPolicy: {{ . | quote }}
{{- end }}
{{- with .Values.dnsConfig }}
dnsConfig:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $affinity := deepCopy .Values.affinity }}
{{- if eq .Values.spread.hosts "hard" }}
{{- $apart := dict "labelSelector" (dict "matchLabels" $selector) "topologyKey" "kubernetes.io/hostname" }}
{{- $affinity = merge $affinity (dict "podAntiAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (list $apart))) }}
{{- end }}
{{- with $affinity }}
affinity:
  {{- include "kvnode.evaluated" (dict "value" . "root" $.root) | nindent 2 }}
{{- end }}
{{- $spread := list }}
{{- range $key, $how := dict "kubernetes.io/hostname" .Values.spread.hosts "topology.kubernetes.io/zone" .Values.spread.zones }}
{{- if or (eq $how "soft") (and (eq $how "hard") (ne $key "kubernetes.io/hostname")) }}
{{- $spread = append $spread (dict "maxSkew" 1 "topologyKey" $key "whenUnsatisfiable" (eq $how "hard" | ternary "DoNotSchedule" "ScheduleAnyway") "labelSelector" (dict "matchLabels" $selector)) }}
{{- end }}
{{- end }}
{{- with concat $spread .Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- include "kvnode.evaluated" (dict "value" . "root" $.root) | nindent 2 }}
{{- end }}
{{- with .Values.initContainers }}
initContainers:
  {{- include "kvnode.evaluated" (dict "value" . "root" $.root) | nindent 2 }}
{{- end }}
containers:
  - name: kvnode
    image: {{ include "kvnode.image" . | quote }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    args:
      - agent
      - --node-name=$(POD_NAME)
      # A name, looked up at each dial: the pod's address changes with every restart.
      - --advertise=$(POD_NAME).{{ $headless }}.$(POD_NAMESPACE).svc.{{ .Values.clusterDomain }}
      - --join-srv=_raft._tcp.{{ include "kvnode.headless" . }}.$(POD_NAMESPACE).svc.{{ .Values.clusterDomain }}
      - {{ printf "--data-dir=%s" $storage.mountPath | quote }}
      - {{ printf "--bind=%s" .Values.listenAddress | quote }}
      - {{ printf "--client=%s" .Values.listenAddress | quote }}
      - --http-port={{ .Values.ports.http }}
      - --peer-port={{ .Values.ports.raft }}
      {{- if $reader }}
      - --read-replica
      {{- else }}
      - --config-file=/etc/kvnode/bootstrap/$(POD_NAME).toml
      {{- end }}
      {{- if include "kvnode.usesApi" . }}
      # Whether this pod is scaled away, and not only restarted, is known to the API server alone.
      - --kubernetes-statefulset={{ $own }}
      {{- end }}
      {{- if and .Values.leaderService.enabled (not $reader) }}
      - --kubernetes-leader-label
      {{- end }}
      {{- if .Values.tls.enabled }}
      - --tls-cert-file=/etc/kvnode/tls/tls.crt
      - --tls-key-file=/etc/kvnode/tls/tls.key
      - --tls-ca-file=/etc/kvnode/tls/ca.crt
      - --tls-http={{ .Values.tls.http }}
      - --tls-verify-clients={{ .Values.tls.verifyClients }}
      {{- end }}
      {{- if include "kvnode.peerSecretName" . }}
      - --peer-secret-file=/etc/kvnode/peer-secret/secret
      {{- end }}
      {{- if .Values.settings }}
      - --config-file=/etc/kvnode/settings/settings.json
      {{- end }}
      {{- with .Values.extraArgs }}
      {{- include "kvnode.evaluated" (dict "value" . "root" $.root) | nindent 6 }}
      {{- end }}
    env:
      - name: POD_NAME
        valueFrom:
          fieldRef:
            fieldPath: metadata.name
      - name: POD_NAMESPACE
        valueFrom:
          fieldRef:
            fieldPath: metadata.namespace
      {{- if include "kvnode.https" . }}
      # For `kubectl exec … kvnode members`.
      - name: CONSUL_HTTP_ADDR
        value: https://localhost:{{ .Values.ports.http }}
      - name: CONSUL_CACERT
        value: /etc/kvnode/tls/ca.crt
      {{- if .Values.tls.verifyClients }}
      - name: CONSUL_CLIENT_CERT
        value: /etc/kvnode/tls/tls.crt
      - name: CONSUL_CLIENT_KEY
        value: /etc/kvnode/tls/tls.key
      {{- end }}
      {{- end }}
      {{- with .Values.extraEnv }}
      {{- include "kvnode.evaluated" (dict "value" . "root" $.root) | nindent 6 }}
      {{- end }}
    {{- with .Values.extraEnvFrom }}
    envFrom:
      {{- include "kvnode.evaluated" (dict "value" . "root" $.root) | nindent 6 }}
    {{- end }}
    # A node that cannot start says why, and what to do, in its last line: so `kubectl describe pod` shows it.
    terminationMessagePolicy: FallbackToLogsOnError
    ports:
      - name: http
        containerPort: {{ .Values.ports.http }}
        protocol: TCP
      - name: raft
        containerPort: {{ .Values.ports.raft }}
        protocol: TCP
    startupProbe:
      httpGet:
        path: /health/startup
        port: http
        {{- if include "kvnode.https" . }}
        scheme: HTTPS
        {{- end }}
      {{- toYaml .Values.probes.startup | nindent 6 }}
    livenessProbe:
      httpGet:
        path: /health/live
        port: http
        {{- if include "kvnode.https" . }}
        scheme: HTTPS
        {{- end }}
      {{- toYaml .Values.probes.liveness | nindent 6 }}
    readinessProbe:
      httpGet:
        path: /health/ready
        port: http
        {{- if include "kvnode.https" . }}
        scheme: HTTPS
        {{- end }}
      {{- toYaml .Values.probes.readiness | nindent 6 }}
    {{- if .Values.preStopSeconds }}
    lifecycle:
      preStop:
        # Endpoints are updated while the pod is being stopped; a request that still comes meanwhile is answered. Not the
        # `sleep` action, which Kubernetes has only since 1.30.
        exec:
          command: [sleep, {{ .Values.preStopSeconds | toString | quote }}]
    {{- end }}
    {{- with $reader | ternary (.Values.readReplicas.resources | default .Values.resources) .Values.resources }}
    resources:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with .Values.securityContext }}
    securityContext:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    volumeMounts:
      - name: data
        mountPath: {{ $storage.mountPath | quote }}
        {{- if eq $mode "shared" }}
        subPathExpr: {{ $storage.shared.subPathExpr | quote }}
        {{- end }}
      {{- if not $reader }}
      - name: bootstrap
        mountPath: /etc/kvnode/bootstrap
        readOnly: true
      {{- end }}
      {{- if .Values.tls.enabled }}
      # The folder and not a file in it: what changes in the Secret is then seen here, and read without a restart.
      - name: tls
        mountPath: /etc/kvnode/tls
        readOnly: true
      {{- end }}
      {{- if include "kvnode.peerSecretName" . }}
      - name: peer-secret
        mountPath: /etc/kvnode/peer-secret
        readOnly: true
      {{- end }}
      {{- if include "kvnode.usesApi" . }}
      - name: api-access
        mountPath: /var/run/secrets/kubernetes.io/serviceaccount
        readOnly: true
      {{- end }}
      {{- if .Values.settings }}
      - name: settings
        mountPath: /etc/kvnode/settings
        readOnly: true
      {{- end }}
      {{- with .Values.extraVolumeMounts }}
      {{- include "kvnode.evaluated" (dict "value" . "root" $.root) | nindent 6 }}
      {{- end }}
  {{- with .Values.extraContainers }}
  {{- include "kvnode.evaluated" (dict "value" . "root" $.root) | nindent 2 }}
  {{- end }}
volumes:
  {{- if not $reader }}
  - name: bootstrap
    configMap:
      name: {{ $fullname }}-bootstrap
  {{- end }}
  {{- if .Values.tls.enabled }}
  - name: tls
    secret:
      secretName: {{ include "kvnode.tlsSecretName" . | quote }}
  {{- end }}
  {{- with include "kvnode.peerSecretName" . }}
  - name: peer-secret
    secret:
      secretName: {{ . | quote }}
      items:
        - key: {{ $.root.Values.peerSecret.key | quote }}
          path: secret
  {{- end }}
  {{- if include "kvnode.usesApi" . }}
  # A token of its own that Kubernetes renews, instead of the account's; the kubelet's namespace file besides.
  - name: api-access
    {{- include "kvnode.apiAccess" . | nindent 4 }}
  {{- end }}
  {{- if .Values.settings }}
  - name: settings
    configMap:
      name: {{ $fullname }}-settings
  {{- end }}
  {{- if eq $mode "shared" }}
  - name: data
    persistentVolumeClaim:
      claimName: {{ include "kvnode.sharedClaim" . | quote }}
  {{- else if eq $mode "ephemeral" }}
  - name: data
    {{- $empty := dict }}
    {{- with $storage.ephemeral.medium }}{{ $_ := set $empty "medium" . }}{{ end }}
    {{- with $storage.ephemeral.sizeLimit }}{{ $_ := set $empty "sizeLimit" . }}{{ end }}
    emptyDir: {{ toJson $empty }}
  {{- end }}
  {{- with .Values.extraVolumes }}
  {{- include "kvnode.evaluated" (dict "value" . "root" $.root) | nindent 2 }}
  {{- end }}
{{- end -}}
{{- end -}}

{{- /* Claim template of perPod volumes: (dict "root" $ "selector" map "size" text). */ -}}
{{- define "kvnode.claimTemplate" -}}
{{- $perPod := .root.Values.persistence.perPod -}}
metadata:
  name: data
  {{- /* Never the chart's version here: these cannot be changed later. */}}
  labels:
    {{- toYaml (merge (dict) .selector $perPod.labels) | nindent 4 }}
  {{- with $perPod.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  accessModes:
    {{- toYaml $perPod.accessModes | nindent 4 }}
  {{- with include "kvnode.storageClass" $perPod.storageClass }}
  {{- . | nindent 2 }}
  {{- end }}
  resources:
    requests:
      storage: {{ .size | quote }}
  {{- with $perPod.selector }}
  selector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- /* Annotations of the pods: the settings' checksum restarts them when a setting changes. */ -}}
{{- define "kvnode.podAnnotations" -}}
{{- $annotations := merge (dict) .Values.podAnnotations .Values.commonAnnotations -}}
{{- if .Values.settings -}}
{{- $annotations = merge $annotations (dict "kvnode/settings-checksum" (toJson .Values.settings | sha256sum)) -}}
{{- end -}}
{{- with $annotations -}}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}
