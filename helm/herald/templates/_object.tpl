{{/* Every object passes through here: it gets the common labels and annotations, and the patches of the values. */}}

{{/*
Renders the documents of a template: (dict "root" $ "template" "herald.nats"). Reading each document and writing it again
sorts its keys, so that two renderings are the same byte by byte.
*/}}
{{- define "herald.render" -}}
{{- $root := .root -}}
{{- range $text := regexSplit "(?m)^---$" (include .template $root) -1 }}
{{- if trim $text }}
{{- $object := fromYaml $text -}}
{{- if hasKey $object "Error" }}{{ fail (printf "the chart made a document that is no YAML: %s\n%s" $object.Error $text) }}{{ end -}}
{{- $metadata := $object.metadata -}}
{{- $labels := fromYaml (include "herald.labels" $root) -}}
{{- range $key, $value := (default dict $metadata.labels) }}{{- $_ := set $labels $key $value }}{{- end -}}
{{- $_ := set $metadata "labels" $labels -}}
{{- $annotations := deepCopy (default dict $root.Values.commonAnnotations) -}}
{{- range $key, $value := (default dict $metadata.annotations) }}{{- $_ := set $annotations $key $value }}{{- end -}}
{{- if $annotations }}{{- $_ := set $metadata "annotations" $annotations }}{{- else }}{{- $_ := unset $metadata "annotations" }}{{- end -}}
{{- $_ := set $metadata "namespace" $root.Release.Namespace -}}
{{- $_ := include "herald.patch" (list $root $object) }}
---
{{ toYaml $object }}
{{- end }}
{{- end }}
{{- end }}

{{/* Applies the patches whose target is this object: (list $ $object). */}}
{{- define "herald.patch" -}}
{{- $root := index . 0 -}}
{{- $object := index . 1 -}}
{{- range $root.Values.patches }}
{{- $name := tpl .target.name $root -}}
{{- $matches := eq $name $object.metadata.name }}
{{- if hasSuffix "*" $name }}{{- $matches = hasPrefix (trimSuffix "*" $name) $object.metadata.name }}{{ end }}
{{- if and $matches (eq .target.kind $object.kind) }}
{{- $_ := include "herald.merge" (list $object .patch) }}
{{- end }}
{{- end }}
{{- end }}

{{/*
Merges a patch into a map, as RFC 7386 says: maps are merged, null removes a key, anything else replaces it. Helm's own
merge functions can't set false, 0 or an empty text.
*/}}
{{- define "herald.merge" -}}
{{- $target := index . 0 -}}
{{- range $key, $value := index . 1 }}
{{- if kindIs "map" $value }}
{{- if not (kindIs "map" (get $target $key)) }}{{- $_ := set $target $key dict }}{{- end -}}
{{- $_ := include "herald.merge" (list (get $target $key) $value) }}
{{- else if kindIs "invalid" $value }}{{- $_ := unset $target $key -}}
{{- else }}{{- $_ := set $target $key $value -}}
{{- end }}
{{- end }}
{{- end }}
