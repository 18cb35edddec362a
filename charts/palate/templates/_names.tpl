{{/* Names, labels and images. Every template calls these. */}}

{{- define "palate.fullname" -}}
{{- if eq .Release.Name "palate" -}}palate{{- else -}}{{ printf "%s-palate" .Release.Name | trunc 40 | trimSuffix "-" }}{{- end -}}
{{- end -}}

{{/* What never changes of a component's labels. Call with (list $ "component"). */}}
{{- define "palate.selector" -}}
app.kubernetes.io/name: palate
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{- define "palate.labels" -}}
{{- $root := index . 0 -}}
{{ include "palate.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- with $root.Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* metadata of an object: (list $ "component" "name"). */}}
{{- define "palate.metadata" -}}
name: {{ index . 2 }}
namespace: {{ (index . 0).Release.Namespace }}
labels:
  {{- include "palate.labels" . | nindent 2 }}
{{- end -}}

{{/* The image: (list $ gpu). */}}
{{- define "palate.image" -}}
{{- $image := (index . 0).Values.image -}}
{{- $digest := ternary $image.gpuDigest $image.digest (index . 1) -}}
{{- if $digest -}}
{{ $image.repository }}@{{ $digest }}
{{- else -}}
{{ $image.repository }}:{{ default (index . 0).Chart.AppVersion $image.tag }}{{ if index . 1 }}{{ $image.gpuSuffix }}{{ end }}
{{- end -}}
{{- end -}}

{{/* A ServiceAccount: (list $ "suffix or empty"). */}}
{{- define "palate.account" -}}
{{ include "palate.fullname" (index . 0) }}{{ with index . 1 }}-{{ . }}{{ end }}
{{- end -}}

{{- define "palate.mlflowName" -}}{{ include "palate.fullname" . }}-mlflow{{- end -}}

{{- define "palate.mlflowUri" -}}
{{- if eq .Values.mlflow.mode "bundled" -}}
http://{{ include "palate.mlflowName" . }}.{{ .Release.Namespace }}.svc:5000
{{- else -}}
{{ .Values.mlflow.uri }}
{{- end -}}
{{- end -}}

{{- define "palate.chromaUrl" -}}
{{- if eq .Values.chroma.mode "bundled" -}}
http://{{ include "palate.fullname" . }}-chroma.{{ .Release.Namespace }}.svc:8000
{{- else if eq .Values.chroma.mode "existing" -}}
{{ .Values.chroma.url }}
{{- end -}}
{{- end -}}

{{- define "palate.incremental" -}}
{{- if and (eq .Values.engine "rayservice") (eq .Values.ray.upgrade.type "NewClusterWithIncrementalUpgrade") }}yes{{ end -}}
{{- end -}}

{{/* The Service of the endpoint: KubeRay keeps it on the Ray cluster that serves. With incremental upgrades KubeRay names
     its Services after Ray clusters, and this one is ours, on the pods of both. */}}
{{- define "palate.serveService" -}}
{{ include "palate.fullname" . }}{{ if include "palate.incremental" . }}-endpoint{{ else }}-serve-svc{{ end }}
{{- end -}}

{{- define "palate.endpointUrl" -}}
http://{{ include "palate.serveService" . }}.{{ .Release.Namespace }}.svc:8000
{{- end -}}

{{/* kserve: the Service of an app: (list $ "name"). */}}
{{- define "palate.appService" -}}
{{- $name := printf "%s-app-%s" (include "palate.fullname" (index . 0)) (index . 1) -}}
{{- if gt (len $name) 63 }}{{ $name = printf "%s-%s" (trunc 54 $name | trimSuffix "-") (sha256sum $name | trunc 8) }}{{ end -}}
{{ $name }}
{{- end -}}

{{- define "palate.appNames" -}}{{ keys (default dict .Values.apps) | sortAlpha | join "," }}{{- end -}}

{{/* An app with its defaults, as JSON: (list $ "name"). */}}
{{- define "palate.app" -}}
{{- $root := index . 0 -}}
{{- toJson (mergeOverwrite (deepCopy $root.Values.appDefaults) (deepCopy (default dict (index $root.Values.apps (index . 1))))) -}}
{{- end -}}

{{/* A group of Ray workers with its defaults, as JSON: (list $ "name"). */}}
{{- define "palate.group" -}}
{{- $root := index . 0 -}}
{{- toJson (mergeOverwrite (deepCopy $root.Values.ray.groupDefaults) (deepCopy (default dict (index $root.Values.ray.groups (index . 1))))) -}}
{{- end -}}

{{/* A training job with its defaults, as JSON: (list $ "name"). */}}
{{- define "palate.job" -}}
{{- $root := index . 0 -}}
{{- toJson (mergeOverwrite (deepCopy $root.Values.training.jobDefaults) (deepCopy (default dict (index $root.Values.training.jobs (index . 1))))) -}}
{{- end -}}

{{/* A number as text, without an exponent. */}}
{{- define "palate.number" -}}
{{- if eq (float64 .) (float64 (int64 .)) -}}{{ int64 . }}{{- else -}}{{ . }}{{- end -}}
{{- end -}}
