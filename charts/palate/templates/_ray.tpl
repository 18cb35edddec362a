{{/* Pods of a Ray cluster. KubeRay adds the command, probes, ports of its own and the token. */}}

{{- define "palate.rayEnv" -}}
{{ include "palate.env" . }}
- {name: PALATE_READY_WITHIN_S, value: {{ include "palate.number" .Values.serving.readyWithinS | quote }}}
- {name: PROMETHEUS_MULTIPROC_DIR, value: /run/palate/metrics}
- {name: RAY_SERVE_ENABLE_HA_PROXY, value: "1"}
- {name: RAY_SERVE_THROUGHPUT_OPTIMIZED, value: "1"}
- {name: RAY_SERVE_HAPROXY_NBTHREAD, value: {{ include "palate.number" .Values.serving.haproxyThreads | quote }}}
- {name: RAY_SERVE_HAPROXY_METRICS_ENABLED, value: "0"}
- {name: RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S, value: {{ sub (int64 .Values.serving.drainS) 15 | quote }}}
- {name: RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S, value: {{ min 30 (sub (int64 .Values.serving.drainS) 15) | quote }}}
{{- /* Serve kills a proxy that is not up after three times 5 s, which a node full of starting replicas does not give it. */}}
- {name: RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S, value: "30"}
- {name: RAY_worker_niceness, value: "0"}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: TOKENIZERS_PARALLELISM, value: "false"}
- {name: ORT_LOGGING_LEVEL, value: "3"}
- {name: VLLM_NO_USAGE_STATS, value: "1"}
- {name: VLLM_CONFIG_ROOT, value: /var/lib/palate/vllm}
- {name: HF_HOME, value: /var/lib/palate/huggingface}
{{- end -}}

{{- define "palate.rayMounts" -}}
{{ include "palate.mounts" . }}
- {name: metrics, mountPath: /run/palate/metrics}
- {name: shm, mountPath: /dev/shm}
{{- end -}}

{{/* (list $ "size of the object store") */}}
{{- define "palate.rayVolumes" -}}
{{ include "palate.volumes" (list (index . 0) "" false) }}
- name: metrics
  emptyDir: {sizeLimit: 256Mi}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ index . 1 }}}
{{- end -}}

{{- define "palate.rayHead" -}}
metadata:
  labels:
    {{- include "palate.labels" (list . "ray-head") | nindent 4 }}
spec:
  serviceAccountName: {{ include "palate.fullname" . }}-ray-head
  {{- /* Ray's autoscaler, a container of this pod, asks the Kubernetes API for worker pods. */}}
  automountServiceAccountToken: {{ .Values.ray.autoscaler.enabled }}
  enableServiceLinks: false
  securityContext:
    {{- include "palate.podSecurity" . | nindent 4 }}
  {{- include "palate.pull" . | nindent 2 }}
  {{- with .Values.scheduling.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- include "palate.placed" .Values.ray.head | nindent 2 }}
  containers:
    - name: ray-head
      image: {{ include "palate.image" (list . false) }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      ports:
        - {containerPort: 6379, name: gcs}
        - {containerPort: 8265, name: dashboard}
        - {containerPort: 8000, name: serve}
        - {containerPort: 8080, name: metrics}
      env:
        {{- include "palate.rayEnv" . | nindent 8 }}
      resources:
        {{- toYaml .Values.ray.head.resources | nindent 8 }}
      securityContext:
        {{- include "palate.containerSecurity" . | nindent 8 }}
      volumeMounts:
        {{- include "palate.rayMounts" . | nindent 8 }}
  volumes:
    {{- include "palate.rayVolumes" (list . "512Mi") | nindent 4 }}
{{- end -}}

{{/* Pod template of a worker group: dict root name group. */}}
{{- define "palate.rayWorker" -}}
{{- $root := .root -}}
{{- $group := .group -}}
{{- $name := .name -}}
metadata:
  labels:
    {{- include "palate.labels" (list $root "ray-worker") | nindent 4 }}
    palate.dev/group: {{ $name }}
spec:
  serviceAccountName: {{ include "palate.fullname" $root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- /* so that the exporter can tell the metrics of processes that ended */}}
  shareProcessNamespace: true
  terminationGracePeriodSeconds: {{ add (int64 $root.Values.serving.drainS) 15 }}
  securityContext:
    {{- include "palate.podSecurity" $root | nindent 4 }}
  {{- include "palate.pull" $root | nindent 2 }}
  {{- with $root.Values.scheduling.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $group.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- include "palate.placed" $group | nindent 2 }}
  {{- with $group.spreadOver }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: {{ ternary "DoNotSchedule" "ScheduleAnyway" $group.spreadStrictly }}
      labelSelector:
        matchLabels:
          {{- include "palate.selector" (list $root "ray-worker") | nindent 10 }}
          palate.dev/group: {{ $name }}
  {{- end }}
  containers:
    - name: ray-worker
      image: {{ include "palate.image" (list $root $group.gpu) }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      ports:
        - {containerPort: 8000, name: serve}
        - {containerPort: 8080, name: metrics}
      env:
        {{- include "palate.rayEnv" $root | nindent 8 }}
        {{- range $variable := keys $group.env | sortAlpha }}
        - {name: {{ $variable }}, value: {{ index $group.env $variable | quote }}}
        {{- end }}
      lifecycle:
        preStop:
          exec:
            command: [python, -m, serving.cluster.drain, --within-s, {{ include "palate.number" $root.Values.serving.drainS | quote }}]
      resources:
        {{- toYaml $group.resources | nindent 8 }}
      securityContext:
        {{- include "palate.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        {{- include "palate.rayMounts" $root | nindent 8 }}
    - name: exporter
      image: {{ include "palate.image" (list $root $group.gpu) }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      command: [python, -m, serving.cluster.exporter]
      ports:
        - {containerPort: 9102, name: palate-metrics}
      env:
        - {name: PROMETHEUS_MULTIPROC_DIR, value: /run/palate/metrics}
      readinessProbe:
        httpGet: {path: /metrics, port: palate-metrics}
        periodSeconds: 30
        timeoutSeconds: 5
      resources:
        requests: {cpu: 20m, memory: 64Mi}
        limits: {memory: 128Mi}
      securityContext:
        {{- include "palate.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        - {name: metrics, mountPath: /run/palate/metrics}
        - {name: tmp, mountPath: /tmp}
  volumes:
    {{- include "palate.rayVolumes" (list $root $group.sharedMemory) | nindent 4 }}
{{- end -}}

{{/* What Ray Serve shall run; the deployer starts the rest by itself. */}}
{{- define "palate.serveConfig" -}}
proxy_location: EveryNode
http_options:
  host: 0.0.0.0
  port: 8000
  keep_alive_timeout_s: 90
applications:
  - name: palate
    route_prefix: /
    import_path: serving.cluster.applications:endpoint
    deployments:
      - name: Router
        {{- with .Values.serving.router }}
        {{- if .autoscaling.enabled }}
        num_replicas: auto
        autoscaling_config:
          min_replicas: {{ .autoscaling.minReplicas }}
          initial_replicas: {{ .autoscaling.minReplicas }}
          max_replicas: {{ .autoscaling.maxReplicas }}
          target_ongoing_requests: {{ .autoscaling.targetOngoingRequests }}
          upscale_delay_s: {{ .autoscaling.upscaleDelayS }}
          downscale_delay_s: {{ .autoscaling.downscaleDelayS }}
        {{- else }}
        num_replicas: {{ .replicas }}
        {{- end }}
        ray_actor_options:
          num_cpus: {{ .cpus }}
          resources: {router: 1}
        {{- end }}
        max_ongoing_requests: {{ int64 .Values.config.max_queue }}
        health_check_period_s: 10
        health_check_timeout_s: 30
        graceful_shutdown_timeout_s: {{ sub (int64 .Values.serving.drainS) 5 }}
  - name: palate-deployer
    route_prefix: null
    import_path: serving.cluster.applications:deployer
{{- end -}}
