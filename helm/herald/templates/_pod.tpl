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
{{- include "herald.unique" (list "extraVolumes" "name" .volumes $values.extraVolumes) -}}
{{- include "herald.unique" (list "extraContainers" "name" .containers $values.extraContainers) -}}
serviceAccountName: {{ include "herald.serviceAccountName" (list .root .component) | quote }}
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
priorityClassName: {{ . | quote }}
{{- end }}
{{- with $values.runtimeClassName }}
runtimeClassName: {{ . | quote }}
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
  - topologyKey: {{ .topologyKey | quote }}
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

{{/* Refuses entries of the user that have a name of the chart's: (list "extraVolumes" "name" $yamlOfTheChart $userEntries). */}}
{{- define "herald.unique" -}}
{{- $option := index . 0 -}}
{{- $key := index . 1 -}}
{{- $taken := list -}}
{{- range fromYamlArray (index . 2) }}{{- $taken = append $taken (get . $key) }}{{ end -}}
{{- range index . 3 }}
{{- $value := get . $key }}
{{- if has $value $taken }}
{{- include "herald.refuse" (printf "%s has the %s %q twice, or the chart has it too: choose another one." $option $key $value) }}
{{- end }}
{{- $taken = append $taken $value }}
{{- end }}
{{- end }}

{{/*
A container with Herald's image: root, name, args, env (a map), values, where (the values' name, for messages), ports, probes, mounts.
*/}}
{{- define "herald.container" -}}
{{- $values := .values -}}
{{- include "herald.unique" (list "extraVolumeMounts" "mountPath" .mounts $values.extraVolumeMounts) -}}
- name: {{ .name }}
  image: {{ include "herald.image" (list .root .root.Values.image) | quote }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
    {{- range .args }}
    - {{ . | quote }}
    {{- end }}
  {{- with include "herald.env" (list .root .env $values.extraEnv .where) | trim }}
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

{{/*
The options of a pod that ends, as JSON: (list $ "jobs"). It has those of `pods` but not their containers: a job whose sidecar goes on never ends.
*/}}
{{- define "herald.taskValues" -}}
{{- $root := index . 0 -}}
{{- $values := deepCopy (omit $root.Values.pods "extraContainers") -}}
{{- $_ := include "herald.merge" (list $values (deepCopy (get $root.Values (index . 1)))) -}}
{{- toJson $values -}}
{{- end }}

{{/* Volumes of configuration, of TLS, and for temporary files; and their mounts. */}}
{{- define "herald.volumes" -}}
- name: config
  configMap:
    name: {{ include "herald.fullname" . | quote }}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- include "herald.secretVolumes" (fromJson (include "herald.tlsSecrets" .)) }}
{{- end }}

{{- define "herald.mounts" -}}
- name: config
  mountPath: /etc/herald
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- include "herald.secretMounts" (fromJson (include "herald.tlsSecrets" .)) }}
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
{{- $labels := deepCopy (default dict $root.Values.commonLabels) -}}
{{- range $key, $value := $values.podLabels }}{{- $_ := set $labels $key $value }}{{ end -}}
{{- range $key, $value := fromYaml (index . 2) }}{{- $_ := set $labels $key $value }}{{ end -}}
{{- $annotations := deepCopy (default dict $root.Values.commonAnnotations) -}}
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
