{{/* What the pods of the bundled dependencies have in common. */}}

{{/* The begin of a pod spec: (list $ "nats" $values). */}}
{{- define "herald.bundledPod" -}}
{{- $root := index . 0 -}}
{{- $values := index . 2 -}}
serviceAccountName: {{ include "herald.serviceAccountName" (list $root (index . 1)) | quote }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- include "herald.imagePullSecrets" $root }}
securityContext:
  {{- toYaml $values.podSecurityContext | nindent 2 }}
{{- with default $root.Values.pods.priorityClassName $values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with default $root.Values.pods.nodeSelector $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with default $root.Values.pods.tolerations $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The claim of a StatefulSet. Its labels never change: (list $ "nats" $values). */}}
{{- define "herald.claim" -}}
{{- $storage := (index . 2).storage -}}
volumeClaimTemplates:
  - apiVersion: v1
    kind: PersistentVolumeClaim
    metadata:
      name: data
      labels:
        {{- include "herald.selector" (list (index . 0) (index . 1)) | nindent 8 }}
    spec:
      accessModes: [ReadWriteOnce]
      {{- with $storage.storageClass }}
      storageClassName: {{ . | quote }}
      {{- end }}
      resources:
        requests:
          storage: {{ include "herald.text" $storage.size | quote }}
{{- end }}

{{/*
Settings that Kubernetes or the program can't change later, in a ConfigMap that can't change either. The API server refuses an upgrade that
changes one, and the name of the object says why. Helm goes on with the other objects then, so a StatefulSet must refuse such a change too, by
a field of its own: (list $ "nats" $settings).
*/}}
{{- define "herald.cannotChange" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ include "herald.fullname" $root }}-{{ $component }}-cannot-change-after-install
  labels:
    {{- include "herald.selector" (list $root $component) | nindent 4 }}
immutable: true
data:
  why: These settings of {{ $component }} are part of its volumes or of its data. UPGRADING.md of the chart says how to move to others.
  {{- range $key, $value := index . 2 }}
  {{ $key }}: {{ include "herald.text" $value | quote }}
  {{- end }}
{{- end }}
