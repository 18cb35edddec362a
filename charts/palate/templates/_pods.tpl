{{/* What pods have in common: security, environment, volumes. Pod security `restricted` holds for all of them. */}}

{{- define "palate.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "palate.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "palate.pull" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* nodeSelector and tolerations of a component, or of `scheduling`. */}}
{{- define "palate.placed" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* One variable from the Secret: (list $ "VARIABLE" "key"). */}}
{{- define "palate.secretEnv" -}}
- name: {{ index . 1 }}
  valueFrom: {secretKeyRef: {name: {{ (index . 0).Values.secrets.name }}, key: {{ index . 2 }}}}
{{- end -}}

{{/* Environment of every process of ours. */}}
{{- define "palate.env" -}}
- {name: PALATE_APPS, value: {{ include "palate.appNames" . | quote }}}
- {name: PALATE_MLFLOW_URI, value: {{ include "palate.mlflowUri" . | quote }}}
{{ include "palate.secretEnv" (list . "PALATE_DATABASE_URL" "database-url") }}
{{- if or .Values.mlflow.auth (eq .Values.mlflow.mode "bundled") }}
{{ include "palate.secretEnv" (list . "MLFLOW_TRACKING_USERNAME" "mlflow-username") }}
{{ include "palate.secretEnv" (list . "MLFLOW_TRACKING_PASSWORD" "mlflow-password") }}
{{- end }}
- {name: PALATE_SECRETS, value: /etc/palate/secrets}
- {name: PALATE_HOME, value: /var/lib/palate}
{{- if .Values.serving.home.componentClaim }}
- {name: PALATE_COMPONENT_CACHE, value: /var/lib/palate-components}
{{- end }}
{{- with include "palate.chromaUrl" . }}
- {name: PALATE_CHROMA_URL, value: {{ . | quote }}}
{{- end }}
{{- range $name := keys .Values.config | sortAlpha }}
- {name: PALATE_{{ upper $name }}, value: {{ include "palate.number" (index $.Values.config $name) | quote }}}
{{- end }}
{{- include "palate.trust" . }}
{{- range $name := keys .Values.env | sortAlpha }}
- {name: {{ $name }}, value: {{ index $.Values.env $name | quote }}}
{{- end }}
{{- end -}}

{{/* Private certificate authorities. */}}
{{- define "palate.trust" -}}
{{- if .Values.tls.caConfigMap }}
- {name: SSL_CERT_FILE, value: /etc/palate/ca/ca.crt}
- {name: REQUESTS_CA_BUNDLE, value: /etc/palate/ca/ca.crt}
- {name: AWS_CA_BUNDLE, value: /etc/palate/ca/ca.crt}
- {name: MLFLOW_TRACKING_SERVER_CERT_PATH, value: /etc/palate/ca/ca.crt}
{{- end }}
{{- end -}}

{{- define "palate.mounts" -}}
- {name: home, mountPath: /var/lib/palate}
- {name: tmp, mountPath: /tmp}
- {name: secrets, mountPath: /etc/palate/secrets, readOnly: true}
{{- if .Values.serving.home.componentClaim }}
- {name: components, mountPath: /var/lib/palate-components}
{{- end }}
{{- include "palate.trustMount" . }}
{{- end -}}

{{- define "palate.trustMount" -}}
{{- if .Values.tls.caConfigMap }}
- {name: ca, mountPath: /etc/palate/ca, readOnly: true}
{{- end }}
{{- end -}}

{{/* Volumes for the mounts: (list $ "claim of the home, or empty" with-api-key). Of the Secret only what is read as files. */}}
{{- define "palate.volumes" -}}
{{- $root := index . 0 -}}
- name: home
  {{- if index . 1 }}
  persistentVolumeClaim: {claimName: {{ index . 1 }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ $root.Values.serving.home.sizeLimit }}}
  {{- end }}
- name: tmp
  emptyDir: {sizeLimit: 8Gi}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ $root.Values.secrets.name }}
          items:
            - {key: trace-secret, path: trace-secret}
            - {key: webhook-secret, path: webhook-secret}
            - {key: people-secret, path: people-secret}
      {{- if index . 2 }}
      - secret:
          name: {{ $root.Values.secrets.name }}
          optional: true
          items:
            - {key: api-key, path: api-key}
      {{- end }}
{{- if $root.Values.serving.home.componentClaim }}
- name: components
  persistentVolumeClaim: {claimName: {{ $root.Values.serving.home.componentClaim }}}
{{- end }}
{{- include "palate.trustVolume" $root }}
{{- end -}}

{{- define "palate.trustVolume" -}}
{{- if .Values.tls.caConfigMap }}
- name: ca
  configMap: {name: {{ .Values.tls.caConfigMap }}}
{{- end }}
{{- end -}}

{{/* Spec of a pod that runs one command of ours, up to its volumes: dict root; serviceAccount, token, claim, grace,
     placed, apiKey may be given. */}}
{{- define "palate.podSpec" -}}
{{ include "palate.podSettings" . }}
volumes:
  {{- include "palate.volumes" (list .root (.claim | default "") (.apiKey | default false)) | nindent 2 }}
{{- end -}}

{{/* The same without volumes. */}}
{{- define "palate.podSettings" -}}
serviceAccountName: {{ include "palate.account" (list .root (.serviceAccount | default "")) }}
automountServiceAccountToken: {{ .token | default false }}
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .grace | default 30 }}
securityContext:
  {{- include "palate.podSecurity" .root | nindent 2 }}
{{- include "palate.pull" .root }}
{{- include "palate.placed" (.placed | default .root.Values.scheduling) }}
{{- end -}}
