{{/* The name of everything in this release. */}}
{{- define "headrace.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "headrace.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "headrace.labels" -}}
{{ include "headrace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "headrace.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "headrace.name" .) }}
{{- else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "headrace.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}
{{- else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* A value as TOML. Of the numbers, which Helm keeps as floats, the whole ones are integers. */}}
{{- define "headrace.toml" -}}
{{- if kindIs "map" . }}{
{{- $separator := "" }}
{{- range $key, $value := . }}{{ $separator }}{{ toJson $key }} = {{ include "headrace.toml" $value }}{{ $separator = ", " }}{{ end -}}
}
{{- else if kindIs "slice" . }}[
{{- range $index, $value := . }}{{ if $index }}, {{ end }}{{ include "headrace.toml" $value }}{{ end -}}
]
{{- else if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}
{{- else }}{{ toJson . }}{{ end }}
{{- end }}

{{/* The configuration file. The endpoints must answer the kubelet; the newer of two releases says what is captured. */}}
{{- define "headrace.config" -}}
{{- $own := dict "telemetry" (dict "listen" "0.0.0.0:8080") "fleet" (dict "generation" .Release.Revision) }}
{{- range $section, $keys := mergeOverwrite $own (deepCopy .Values.config) }}
[{{ $section }}]
{{- range $key, $value := $keys }}
{{ toJson $key }} = {{ include "headrace.toml" $value }}
{{- end }}
{{ end }}
{{- end }}

{{/* A size of the configuration ("1.5GiB", 1048576) in MiB, and an eighth more. */}}
{{- define "headrace.memory" -}}
{{- $text := toString (.Values.config.memory.limit) | trim | replace "_" "" | lower }}
{{- $number := regexFind "^[0-9]+([.][0-9]+)?" $text | float64 }}
{{- $unit := regexFind "[a-z]*$" $text }}
{{- $factor := get (dict "" 1.0 "b" 1.0 "kb" 1e3 "mb" 1e6 "gb" 1e9 "kib" 1024.0 "mib" 1048576.0 "gib" 1073741824.0) $unit }}
{{- if not $factor }}{{ fail (printf "config.memory.limit: %s is not a size such as 1GiB" $text) }}{{ end }}
{{- printf "%dMi" (divf (mulf $number $factor 1.125) 1048576.0 | ceil | int64) }}
{{- end }}

{{/* shutdown.timeout in seconds, and what it takes to end. */}}
{{- define "headrace.grace" -}}
{{- $text := toString (.Values.config.shutdown.timeout) | trim | replace "_" "" }}
{{- $number := regexFind "^[0-9]+([.][0-9]+)?" $text | float64 }}
{{- $unit := regexFind "[a-z]*$" $text }}
{{- $factor := get (dict "" 1.0 "ms" 0.001 "s" 1.0 "m" 60.0 "h" 3600.0 "d" 86400.0) $unit }}
{{- if not $factor }}{{ fail (printf "config.shutdown.timeout: %s is not a duration such as 25s" $text) }}{{ end }}
{{- addf (mulf $number $factor | ceil) 15 | int64 }}
{{- end }}
