{{/* The pods of Herald: roles, jobs and the test differ in what they run. */}}

{{/*
A pod of Herald, as a pod template's `spec`:
  root, component      the release, and the component whose service account it has
  values               the options of `pods`, merged
  selector             the labels that select such pods
  containers, initContainers, volumes, serviceAccountToken, restartPolicy, gracePeriod
*/}}
{{- define "herald.podSpec" -}}
{{- $values := .values -}}
serviceAccountName: {{ include "herald.serviceAccountName" (list .root .component) }}
automountServiceAccountToken: {{ default false .serviceAccountToken }}
# Variables such as HERALD_GRAPH_PORT would be unknown settings.
enableServiceLinks: false
{{- with .restartPolicy }}
restartPolicy: {{ . }}
{{- end }}
{{- with .gracePeriod }}
terminationGracePeriodSeconds: {{ . }}
{{- end }}
{{- include "herald.imagePullSecrets" .root }}
securityContext:
  {{- toYaml $values.podSecurityContext | nindent 2 }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .spread }}
{{- $selector := .selector }}
{{- with $values.topologySpread }}
topologySpreadConstraints:
  {{- range . }}
  - topologyKey: {{ .topologyKey }}
    maxSkew: {{ .maxSkew }}
    whenUnsatisfiable: {{ .whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- $selector | nindent 8 }}
    # Pods of the old version don't count during a roll-out.
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end }}
{{- with .initContainers }}
initContainers:
  {{- . | nindent 2 }}
{{- end }}
containers:
  {{- .containers | nindent 2 }}
  {{- with $values.extraContainers }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
volumes:
  {{- .volumes | nindent 2 }}
  {{- with $values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/*
A container with Herald's image: root, name, args, env (a map), values, where (the values' name, for messages), ports, probes, mounts.
*/}}
{{- define "herald.container" -}}
{{- $values := .values -}}
- name: {{ .name }}
  image: {{ include "herald.image" (list .root .root.Values.image) }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
    {{- range .args }}
    - {{ . | quote }}
    {{- end }}
  {{- with include "herald.env" (list .env $values.extraEnv .where) | trim }}
  env:
    {{- . | nindent 4 }}
  {{- end }}
  {{- with $values.extraEnvFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .ports }}
  ports:
    {{- . | nindent 4 }}
  {{- end }}
  {{- with .probes }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with $values.resources }}
  resources:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- toYaml $values.securityContext | nindent 4 }}
  volumeMounts:
    {{- .mounts | nindent 4 }}
    {{- with $values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{/* Volumes of configuration, of TLS, and for temporary files; and their mounts. */}}
{{- define "herald.volumes" -}}
- name: config
  configMap:
    name: {{ include "herald.fullname" . }}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- range $name, $secret := fromJson (include "herald.tlsSecrets" .) }}
- name: tls-{{ $name }}
  secret:
    secretName: {{ $secret }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{- define "herald.mounts" -}}
- name: config
  mountPath: /etc/herald
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- range $name, $secret := fromJson (include "herald.tlsSecrets" .) }}
- name: tls-{{ $name }}
  mountPath: /etc/herald-tls/{{ $name }}
  readOnly: true
{{- end }}
{{- end }}

{{- define "herald.tlsSecrets" -}}
{{- $secrets := dict -}}
{{- with .Values.store.tls.caSecret }}{{- $_ := set $secrets "store" . }}{{ end -}}
{{- with .Values.timelines.tls.caSecret }}{{- $_ := set $secrets "timelines" . }}{{ end -}}
{{- with .Values.nats.tls.caSecret }}{{- $_ := set $secrets "nats-ca" . }}{{ end -}}
{{- with .Values.nats.tls.clientSecret }}{{- $_ := set $secrets "nats-client" . }}{{ end -}}
{{- toJson $secrets -}}
{{- end }}

{{/* Labels and annotations of a pod template: (list $ $values $selector). */}}
{{- define "herald.podMetadata" -}}
{{- $root := index . 0 -}}
{{- $values := index . 1 -}}
{{- $labels := deepCopy $root.Values.commonLabels -}}
{{- range $key, $value := $values.podLabels }}{{- $_ := set $labels $key $value }}{{ end -}}
{{- range $key, $value := fromYaml (index . 2) }}{{- $_ := set $labels $key $value }}{{ end -}}
{{- $annotations := deepCopy $root.Values.commonAnnotations -}}
{{- range $key, $value := $values.podAnnotations }}{{- $_ := set $annotations $key $value }}{{ end -}}
labels:
  {{- toYaml $labels | nindent 2 }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The time that Kubernetes gives a pod of a role to end: the drain, and what comes before and after it. */}}
{{- define "herald.gracePeriod" -}}
{{- add .Values.shutdown.seconds .Values.shutdown.delaySeconds 8 -}}
{{- end }}
