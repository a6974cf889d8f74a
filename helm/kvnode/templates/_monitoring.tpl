{{/* The endpoint of a ServiceMonitor or PodMonitor: (dict "root" $ "monitor" values). */}}
{{- define "kvnode.endpoint" -}}
port: http
path: /metrics
{{- if include "kvnode.https" .root }}
scheme: https
tlsConfig:
  serverName: {{ include "kvnode.fullname" .root }}.{{ .root.Release.Namespace }}.svc
  ca:
    secret:
      name: {{ include "kvnode.tlsSecretName" .root | quote }}
      key: ca.crt
  {{- if .root.Values.tls.verifyClients }}
  cert:
    secret:
      name: {{ include "kvnode.tlsSecretName" .root | quote }}
      key: tls.crt
  keySecret:
    name: {{ include "kvnode.tlsSecretName" .root | quote }}
    key: tls.key
  {{- end }}
{{- end }}
{{- with .monitor }}
{{- with .interval }}
interval: {{ . }}
{{- end }}
{{- with .scrapeTimeout }}
scrapeTimeout: {{ . }}
{{- end }}
{{- with .relabelings }}
relabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .metricRelabelings }}
metricRelabelings:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}
