{{/* Base of all names. */}}
{{- define "kvnode.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/*
Name of the objects. At most 52 characters: the pods' revision label is this name and eleven characters more,
and a label ends at 63.
*/}}
{{- define "kvnode.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "kvnode.headless" -}}
{{ include "kvnode.fullname" . }}-headless
{{- end -}}

{{/* What selects every object's pods of this release: never changes, since selectors cannot. */}}
{{- define "kvnode.releaseLabels" -}}
app.kubernetes.io/name: {{ include "kvnode.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "kvnode.selectorLabels" -}}
{{ include "kvnode.releaseLabels" . }}
app.kubernetes.io/component: server
{{- end -}}

{{/*
Name, namespace, labels and annotations of an object:
(dict "root" $ "name" "…" "component" "server" "labels" map "annotations" map); the last three may be missing.
*/}}
{{- define "kvnode.metadata" -}}
{{- $own := dict
  "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_")
  "app.kubernetes.io/managed-by" .root.Release.Service
  "app.kubernetes.io/version" .root.Chart.AppVersion
  "app.kubernetes.io/component" (.component | default "server") -}}
{{- $release := include "kvnode.releaseLabels" .root | fromYaml -}}
name: {{ .name | quote }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- toYaml (merge $release $own (.labels | default dict) .root.Values.commonLabels) | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "kvnode.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "kvnode.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* Read replicas: names and selector of their own, so that Services and budgets count voters alone. */}}
{{- define "kvnode.readName" -}}
{{ include "kvnode.fullname" . }}-read
{{- end -}}

{{- define "kvnode.readHeadless" -}}
{{ include "kvnode.readName" . }}-headless
{{- end -}}

{{- define "kvnode.readerLabels" -}}
{{ include "kvnode.releaseLabels" . }}
app.kubernetes.io/component: reader
{{- end -}}

{{/* Selector of all nodes, as a LabelSelector. */}}
{{- define "kvnode.nodeSelector" -}}
matchLabels:
{{- if .Values.readReplicas.enabled }}
  {{- include "kvnode.releaseLabels" . | nindent 2 }}
matchExpressions:
  - key: app.kubernetes.io/component
    operator: In
    values: [server, reader]
{{- else }}
  {{- include "kvnode.selectorLabels" . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* Not empty: pods ask the API server for the size of their StatefulSet, or label themselves. */}}
{{- define "kvnode.usesApi" -}}
{{- if or .Values.membership.automaticRemoval .Values.leaderService.enabled -}}true{{- end -}}
{{- end -}}

{{- define "kvnode.https" -}}
{{- if and .Values.tls.enabled .Values.tls.http -}}true{{- end -}}
{{- end -}}

{{- define "kvnode.scheme" -}}
http{{ if include "kvnode.https" . }}s{{ end }}
{{- end -}}

{{- define "kvnode.tlsSecretName" -}}
{{- default (printf "%s-tls" (include "kvnode.fullname" .)) (eq .Values.tls.source "existingSecret" | ternary .Values.tls.existingSecret "") -}}
{{- end -}}

{{/* Names that the one certificate of all pods is for, as a list. */}}
{{- define "kvnode.tlsNames" -}}
{{- $names := list "localhost" -}}
{{- $spaced := list -}}
{{- range $service := list (include "kvnode.fullname" .) (printf "*.%s" (include "kvnode.headless" .)) -}}
{{- $spaced = append $spaced $service -}}
{{- end -}}
{{- if .Values.readReplicas.enabled -}}
{{- $spaced = append (append $spaced (include "kvnode.readName" .)) (printf "*.%s" (include "kvnode.readHeadless" .)) -}}
{{- end -}}
{{- if .Values.leaderService.enabled -}}
{{- $spaced = append $spaced (printf "%s-leader" (include "kvnode.fullname" .)) -}}
{{- end -}}
{{- range $name := $spaced -}}
{{- /* A star before a single label is one that OpenSSL does not honour. */ -}}
{{- if not (hasPrefix "*" $name) }}{{ $names = append $names $name }}{{ end -}}
{{- $names = concat $names (list (printf "%s.%s" $name $.Release.Namespace) (printf "%s.%s.svc" $name $.Release.Namespace) (printf "%s.%s.svc.%s" $name $.Release.Namespace $.Values.clusterDomain)) -}}
{{- end -}}
{{- toYaml (concat $names .Values.tls.extraNames) -}}
{{- end -}}

{{/* Name of the Secret with the peers' secret; empty: there is none. */}}
{{- define "kvnode.peerSecretName" -}}
{{- if .Values.peerSecret.existingSecret -}}
{{- .Values.peerSecret.existingSecret -}}
{{- else if .Values.peerSecret.generate -}}
{{- include "kvnode.fullname" . }}-peer-secret
{{- end -}}
{{- end -}}

{{/* Not empty: a Job makes Secrets. */}}
{{- define "kvnode.makesSecrets" -}}
{{- if or (and .Values.tls.enabled (eq .Values.tls.source "generated")) (and .Values.peerSecret.generate (not .Values.peerSecret.existingSecret)) -}}true{{- end -}}
{{- end -}}

{{/* Environment of a pod that asks the cluster by its Service: where, and which CA. */}}
{{- define "kvnode.clientEnv" -}}
- name: CONSUL_HTTP_ADDR
  value: {{ include "kvnode.scheme" . }}://{{ include "kvnode.fullname" . }}:{{ .Values.service.port }}
{{- if include "kvnode.https" . }}
- name: CONSUL_CACERT
  value: /etc/kvnode/tls/ca.crt
{{- if .Values.tls.verifyClients }}
- name: CONSUL_CLIENT_CERT
  value: /etc/kvnode/tls/tls.crt
- name: CONSUL_CLIENT_KEY
  value: /etc/kvnode/tls/tls.key
{{- end }}
{{- end }}
{{- end -}}

{{- define "kvnode.clientMounts" -}}
{{- if include "kvnode.https" . -}}
- name: tls
  mountPath: /etc/kvnode/tls
  readOnly: true
{{- end }}
{{- end -}}

{{/* Its volumes; without verifyClients a client gets the CA and no key. */}}
{{- define "kvnode.clientVolumes" -}}
{{- if include "kvnode.https" . -}}
- name: tls
  secret:
    secretName: {{ include "kvnode.tlsSecretName" . | quote }}
    {{- if not .Values.tls.verifyClients }}
    items:
      - key: ca.crt
        path: ca.crt
    {{- end }}
{{- end }}
{{- end -}}

{{/* The head of the spec of a pod that runs once, beside the nodes: (dict "root" $ "fsGroup" bool "account" name). */}}
{{- define "kvnode.jobPod" -}}
restartPolicy: Never
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .account }}
serviceAccountName: {{ . | quote }}
{{- end }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $security := .root.Values.podSecurityContext }}
{{- if not .fsGroup }}
{{- $security = omit $security "fsGroup" "fsGroupChangePolicy" }}
{{- end }}
{{- with $security }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The service account's folder with a token of its own; see the pods. */}}
{{- define "kvnode.apiAccess" -}}
projected:
  sources:
    - serviceAccountToken:
        path: token
        expirationSeconds: 3600
    - configMap:
        name: kube-root-ca.crt
        items:
          - key: ca.crt
            path: ca.crt
    - downwardAPI:
        items:
          - path: namespace
            fieldRef:
              fieldPath: metadata.namespace
{{- end -}}

{{- define "kvnode.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* "storageClassName: …", or nothing for the cluster's default; "-" means none at all. */}}
{{- define "kvnode.storageClass" -}}
{{- if eq . "-" -}}
storageClassName: ""
{{- else if . -}}
storageClassName: {{ . | quote }}
{{- end -}}
{{- end -}}

{{- define "kvnode.sharedClaim" -}}
{{- default (printf "%s-data" (include "kvnode.fullname" .)) .Values.persistence.shared.existingClaim -}}
{{- end -}}

{{/* A list of a user's, with templates in it evaluated. */}}
{{- define "kvnode.evaluated" -}}
{{- tpl (toYaml .value) .root -}}
{{- end -}}

{{- define "kvnode.hasPrometheus" -}}
{{- if .Capabilities.APIVersions.Has "monitoring.coreos.com/v1" -}}true{{- end -}}
{{- end -}}

{{- define "kvnode.hasGateway" -}}
{{- if .Capabilities.APIVersions.Has "gateway.networking.k8s.io/v1" -}}true{{- end -}}
{{- end -}}

{{/* Families of both Services. */}}
{{- define "kvnode.ipFamilies" -}}
{{- $families := dict -}}
{{- with .Values.service.ipFamilyPolicy }}{{ $_ := set $families "ipFamilyPolicy" . }}{{ end -}}
{{- with .Values.service.ipFamilies }}{{ $_ := set $families "ipFamilies" . }}{{ end -}}
{{- with $families }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* Seconds in a setting such as 20, "20s" or "1m30s". */}}
{{- define "kvnode.seconds" -}}
{{- $text := toString . -}}
{{- $sum := 0.0 -}}
{{- if regexMatch "^[0-9.]+$" $text -}}
{{- $sum = float64 $text -}}
{{- else -}}
{{- range regexFindAll "[0-9.]+(ms|s|m|h)" $text -1 -}}
{{- $number := regexFind "^[0-9.]+" . | float64 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- $sum = addf $sum (mulf $number (get (dict "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0) $unit)) -}}
{{- end -}}
{{- end -}}
{{- $sum -}}
{{- end -}}

{{/* What a schema cannot say: values that do not fit together. */}}
{{- define "kvnode.validate" -}}
{{- $stop := include "kvnode.seconds" (.Values.settings.shutdown_s | default 20) | float64 -}}
{{- if .Values.membership.automaticRemoval -}}
{{- $removal := hasKey .Values.settings "removal_timeout_s" | ternary .Values.settings.removal_timeout_s 30 -}}
{{- $stop = addf $stop (include "kvnode.seconds" $removal | float64) -}}
{{- end -}}
{{- if ge (addf $stop .Values.preStopSeconds) (float64 .Values.terminationGracePeriodSeconds) -}}
{{- fail (printf "terminationGracePeriodSeconds: %v is not above preStopSeconds (%v) and settings.shutdown_s with removal_timeout_s (%v) together: pods would be killed while they hand over" .Values.terminationGracePeriodSeconds .Values.preStopSeconds $stop) -}}
{{- end -}}
{{- if eq (int .Values.ports.http) (int .Values.ports.raft) -}}
{{- fail (printf "ports: http and raft are both %v" .Values.ports.http) -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled -}}
{{- fail "metrics: serviceMonitor and podMonitor would scrape every pod twice; enable one of them" -}}
{{- end -}}
{{- if .Values.tls.enabled -}}
{{- if and (eq .Values.tls.source "existingSecret") (not .Values.tls.existingSecret) -}}
{{- fail "tls.existingSecret: name the Secret with tls.crt, tls.key and ca.crt" -}}
{{- end -}}
{{- if and (eq .Values.tls.source "certManager") (not .Values.tls.certManager.issuerRef.name) -}}
{{- fail "tls.certManager.issuerRef.name: name the Issuer" -}}
{{- end -}}
{{- if and (eq .Values.tls.source "certManager") (not (.Capabilities.APIVersions.Has "cert-manager.io/v1")) -}}
{{- fail "tls.source is certManager, and this cluster has no cert-manager.io/v1" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.backup.enabled (not (or .Values.backup.existingClaim .Values.backup.size)) -}}
{{- fail "backup: name an existingClaim, or the size of one that is made" -}}
{{- end -}}
{{- if and .Values.restore.enabled (not .Values.restore.existingClaim) -}}
{{- fail "restore.existingClaim: name the claim that holds the snapshot" -}}
{{- end -}}
{{- if and .Values.leaderService.enabled (eq .Values.serviceAccount.create false) (not .Values.serviceAccount.name) -}}
{{- fail "leaderService: give the pods a service account, created or named, that may label them" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs: name at least one gateway" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.hosts: name at least one host" -}}
{{- end -}}
{{- end -}}
