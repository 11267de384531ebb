{{/* Names, labels and images. */}}

{{- define "herald.name" -}}
{{- $name := regexReplaceAll "[-._]+$" (default .Chart.Name .Values.nameOverride | trunc 40) "" -}}
{{- if not (regexMatch "^[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$" $name) -}}
{{- include "herald.refuse" (printf "nameOverride is %q, and can't be the value of a label: use letters, digits and hyphens." .Values.nameOverride) -}}
{{- end -}}
{{- $name -}}
{{- end }}

{{/*
The begin of the names of all objects. A Service must be a host name that starts with a letter. It is short, so that every name fits; the hash
of a longer one keeps two releases apart that begin alike.
*/}}
{{- define "herald.fullname" -}}
{{- $name := include "herald.name" . -}}
{{- $full := printf "%s-%s" .Release.Name $name -}}
{{- if .Values.fullnameOverride -}}{{- $full = .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}{{- $full = .Release.Name -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $full) -}}
{{- include "herald.refuse" (printf "the names of all objects would begin with %q, and a Service can't have such a name: set fullnameOverride to a name of lower-case letters, digits and hyphens that starts with a letter." $full) -}}
{{- end -}}
{{- if gt (len $full) 40 -}}{{- $full = printf "%s-%s" (trunc 31 $full | trimSuffix "-") (include "herald.hash" $full) -}}{{- end -}}
{{- $full -}}
{{- end }}

{{/* The labels that select the pods of a component: (list $ "timeline"). They never change, so they hold no version. */}}
{{- define "herald.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "herald.name" $root | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
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
{{- $registry := default $image.registry (default dict $root.Values.global).imageRegistry -}}
{{- if $registry }}{{ trimSuffix "/" $registry }}/{{ end -}}
{{- $image.repository -}}
{{- $tag := $image.tag -}}
{{- if and (not $tag) (not $image.digest) }}{{- $tag = $root.Chart.AppVersion }}{{- end -}}
{{- with $tag }}:{{ . }}{{ end -}}
{{- with $image.digest }}@{{ . }}{{ end -}}
{{- end }}

{{- define "herald.imagePullSecrets" -}}
{{- with (default dict .Values.global).imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ if kindIs "map" . }}{{ quote .name }}{{ else }}{{ quote . }}{{ end }}
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

{{/* A scalar as a text. A whole number that was read as a float would be 1e+06 otherwise. */}}
{{- define "herald.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) -}}{{ int64 . }}{{- else if not (kindIs "invalid" .) -}}{{ toString . }}{{- end -}}
{{- end }}

{{/* Eight hexadecimal digits of a hash. */}}
{{- define "herald.hash" -}}
{{- sha256sum . | trunc 8 -}}
{{- end }}
