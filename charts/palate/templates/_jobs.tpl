{{/* Pod templates of the Jobs that prepare an installation, each in a piece: a Job's name has its digest. */}}

{{- define "palate.seedPod" -}}
{{- $folders := list }}
{{- range $name := keys (default dict .Values.apps) | sortAlpha }}
{{- $app := include "palate.app" (list $ $name) | fromJson }}
{{- if $app.folder }}{{ $folders = append $folders $app.folder }}{{ end }}
{{- end -}}
metadata:
  labels:
    {{- include "palate.labels" (list . "seed") | nindent 4 }}
spec:
  {{- include "palate.podSpec" (dict "root" .) | nindent 2 }}
  restartPolicy: Never
  containers:
    - name: seed
      image: {{ include "palate.image" (list . false) }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: {{ concat (list "palate" "seed") $folders | toJson }}
      env:
        {{- include "palate.env" . | nindent 8 }}
      resources:
        {{- toYaml .Values.seed.resources | nindent 8 }}
      securityContext:
        {{- include "palate.containerSecurity" . | nindent 8 }}
      volumeMounts:
        {{- include "palate.mounts" . | nindent 8 }}
{{- end -}}

{{/* (list $ is-a-hook): a hook's pod has a ServiceAccount of its own, which is there before all else. */}}
{{- define "palate.migratePod" -}}
{{- $root := index . 0 -}}
metadata:
  labels:
    {{- include "palate.labels" (list $root "migrate") | nindent 4 }}
spec:
  {{- include "palate.podSpec" (dict "root" $root "serviceAccount" (ternary "migrate" "" (index . 1)) "apiKey" true) | nindent 2 }}
  restartPolicy: Never
  containers:
    - name: migrate
      image: {{ include "palate.image" (list $root false) }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      command: [palate, migrate]
      env:
        {{- include "palate.env" $root | nindent 8 }}
      resources:
        requests: {cpu: 100m, memory: 256Mi}
        limits: {memory: 512Mi}
      securityContext:
        {{- include "palate.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        {{- include "palate.mounts" $root | nindent 8 }}
{{- end -}}
