{{/* Names, labels and images. */}}

{{- define "herald.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* The begin of the names of all objects. Short, so that every name is a valid host name. */}}
{{- define "herald.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "herald.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "herald.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{/* The labels that select the pods of a component: (list $ "timeline"). They never change, so they hold no version. */}}
{{- define "herald.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "herald.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* The labels of every object; those of its selector come from the object itself. */}}
{{- define "herald.labels" -}}
{{- $labels := dict
  "app.kubernetes.io/name" (include "herald.name" .)
  "app.kubernetes.io/instance" .Release.Name
  "app.kubernetes.io/version" (.Chart.AppVersion | toString)
  "app.kubernetes.io/part-of" "herald"
  "app.kubernetes.io/managed-by" .Release.Service
  "helm.sh/chart" (printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
-}}
{{- range $key, $value := .Values.commonLabels }}{{- $_ := set $labels $key $value }}{{- end -}}
{{- toYaml $labels -}}
{{- end }}

{{/* A reference to an image: (list $ .Values.nats.image). */}}
{{- define "herald.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $registry := default $image.registry $root.Values.global.imageRegistry -}}
{{- if $registry }}{{ trimSuffix "/" $registry }}/{{ end -}}
{{- $image.repository -}}
{{- $tag := $image.tag -}}
{{- if and (not $tag) (not $image.digest) }}{{- $tag = $root.Chart.AppVersion }}{{- end -}}
{{- with $tag }}:{{ . }}{{ end -}}
{{- with $image.digest }}@{{ . }}{{ end -}}
{{- end }}

{{- define "herald.imagePullSecrets" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The name of the service account of a component: (list $ "timeline" $values). */}}
{{- define "herald.serviceAccountName" -}}
{{- $root := index . 0 -}}
{{- $account := $root.Values.serviceAccounts -}}
{{- if $account.existing -}}{{ $account.existing }}
{{- else -}}{{ include "herald.fullname" $root }}-{{ index . 1 }}{{- end -}}
{{- end }}

{{/* A host name within the cluster: (list $ "nats"). The namespace is part of it, so that KEDA can resolve it too. */}}
{{- define "herald.host" -}}
{{- $root := index . 0 -}}
{{ include "herald.fullname" $root }}-{{ index . 1 }}.{{ $root.Release.Namespace }}.svc.{{ $root.Values.clusterDomain }}
{{- end }}

{{/* Eight hexadecimal digits of a hash. */}}
{{- define "herald.hash" -}}
{{- sha256sum . | trunc 8 -}}
{{- end }}
