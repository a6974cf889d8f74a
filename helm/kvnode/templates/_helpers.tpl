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
{{- if ge (addf $stop .Values.preStopSeconds) (float64 .Values.terminationGracePeriodSeconds) -}}
{{- fail (printf "terminationGracePeriodSeconds: %v is not above preStopSeconds (%v) and settings.shutdown_s (%v) together: pods would be killed while they hand over" .Values.terminationGracePeriodSeconds .Values.preStopSeconds $stop) -}}
{{- end -}}
{{- if eq (int .Values.ports.http) (int .Values.ports.raft) -}}
{{- fail (printf "ports: http and raft are both %v" .Values.ports.http) -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled -}}
{{- fail "metrics: serviceMonitor and podMonitor would scrape every pod twice; enable one of them" -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.parentRefs: name at least one gateway" -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.hosts: name at least one host" -}}
{{- end -}}
{{- end -}}
