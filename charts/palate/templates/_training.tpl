{{/* Pods of training jobs: dict root name job. */}}

{{- define "palate.trainCommand" -}}
{{- $app := include "palate.app" (list .root .job.app) | fromJson -}}
{{- concat (list "palate" "train" $app.folder) .job.arguments | toJson -}}
{{- end -}}

{{/* A container that trains; (dict root name job container command address). */}}
{{- define "palate.trainContainer" -}}
- name: {{ .container }}
  image: {{ include "palate.image" (list .root .job.gpu) }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  {{- with .command }}
  command: {{ . }}
  {{- end }}
  {{- if eq .container "ray-head" }}
  ports:
    - {containerPort: 6379, name: gcs}
    - {containerPort: 8265, name: dashboard}
  {{- end }}
  env:
    {{- include "palate.env" .root | nindent 4 }}
    {{- with .address }}
    - {name: PALATE_RAY_ADDRESS, value: {{ . }}}
    {{- end }}
    - {name: RAY_USAGE_STATS_ENABLED, value: "0"}
  resources:
    {{- toYaml .job.resources | nindent 4 }}
  securityContext:
    {{- include "palate.containerSecurity" .root | nindent 4 }}
  volumeMounts:
    {{- include "palate.mounts" .root | nindent 4 }}
    - {name: shm, mountPath: /dev/shm}
{{- end -}}

{{/* Template of a pod of the Ray cluster of a RayJob: dict root name job container. */}}
{{- define "palate.trainRayPod" -}}
metadata:
  labels:
    {{- include "palate.labels" (list .root "training") | nindent 4 }}
spec:
  {{- include "palate.podSpec" (dict "root" .root "claim" .job.homeClaim "placed" .job "grace" 120) | nindent 2 }}
    - name: shm
      emptyDir: {medium: Memory, sizeLimit: 1Gi}
  containers:
    {{- include "palate.trainContainer" (merge (dict "address" "auto") .) | nindent 4 }}
{{- end -}}

{{- define "palate.rayJobSpec" -}}
entrypoint: {{ include "palate.trainCommand" . | fromJsonArray | join " " }}
submissionMode: K8sJobMode
shutdownAfterJobFinishes: true
ttlSecondsAfterFinished: 3600
activeDeadlineSeconds: {{ int64 .job.deadlineS }}
backoffLimit: 0
submitterPodTemplate:
  metadata:
    labels:
      {{- include "palate.labels" (list .root "training") | nindent 6 }}
  spec:
    serviceAccountName: {{ include "palate.fullname" .root }}
    automountServiceAccountToken: false
    enableServiceLinks: false
    restartPolicy: Never
    securityContext:
      {{- include "palate.podSecurity" .root | nindent 6 }}
    {{- include "palate.pull" .root | nindent 4 }}
    containers:
      - name: submitter
        image: {{ include "palate.image" (list .root false) }}
        imagePullPolicy: {{ .root.Values.image.pullPolicy }}
        resources:
          requests: {cpu: 100m, memory: 256Mi}
          limits: {memory: 512Mi}
        securityContext:
          {{- include "palate.containerSecurity" .root | nindent 10 }}
        volumeMounts:
          - {name: tmp, mountPath: /tmp}
    volumes:
      - name: tmp
        emptyDir: {}
rayClusterSpec:
  rayVersion: {{ .root.Values.ray.version | quote }}
  authOptions:
    mode: token
  headGroupSpec:
    rayStartParams:
      dashboard-host: 0.0.0.0
    template:
      {{- include "palate.trainRayPod" (merge (dict "container" "ray-head") .) | nindent 6 }}
  workerGroupSpecs:
    - groupName: trainers
      replicas: {{ .job.workers }}
      minReplicas: {{ .job.workers }}
      maxReplicas: {{ .job.workers }}
      rayStartParams: {}
      template:
        {{- include "palate.trainRayPod" (merge (dict "container" "ray-worker") .) | nindent 8 }}
{{- end -}}
