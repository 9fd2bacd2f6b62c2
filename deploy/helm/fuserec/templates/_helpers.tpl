{{- define "fuserec.name" -}}
{{- if contains "fuserec" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-fuserec" (.Release.Name | trunc 42 | trimSuffix "-") }}
{{- end }}
{{- end }}

{{- /* What selects the pods; it may never change in an upgrade. */ -}}
{{- define "fuserec.selector" -}}
app.kubernetes.io/name: fuserec
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "fuserec.labels" -}}
{{ include "fuserec.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "fuserec.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}
