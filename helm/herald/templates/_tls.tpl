{{/* TLS of Herald's ports. */}}

{{/* The Secret with the certificate of the gateway's ports ("tls") or of the roles ("internalTls"): (list $ "tls"). */}}
{{- define "herald.certificateSecret" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $made := printf "%s-%s" (include "herald.fullname" $root) (ternary "tls" "internal-tls" (eq $name "tls")) -}}
{{ (get $root.Values $name).existingSecret | default $made }}
{{- end }}

{{/* Whether the gRPC port of a role has TLS: (list $ $role). */}}
{{- define "herald.hasTls" -}}
{{- $values := (index . 0).Values -}}
{{- if ternary $values.tls.enabled $values.internalTls.enabled (eq (index . 1) "gateway") }}true{{ end -}}
{{- end }}

{{/* The Secrets of TLS that a role mounts below /etc/herald-tls, as JSON: (list $ $role). The key of the public API is for the gateway alone. */}}
{{- define "herald.roleTlsSecrets" -}}
{{- $root := index . 0 -}}
{{- $secrets := dict -}}
{{- if $root.Values.internalTls.enabled }}{{- $_ := set $secrets "internal" (include "herald.certificateSecret" (list $root "internalTls")) }}{{ end -}}
{{- if and $root.Values.tls.enabled (eq (index . 1) "gateway") }}
{{- $_ := set $secrets "public" (include "herald.certificateSecret" (list $root "tls")) }}
{{- with $root.Values.tls.clientCaSecret }}{{- $_ := set $secrets "public-clients" . }}{{ end }}
{{- end -}}
{{- toJson $secrets -}}
{{- end }}

{{/* Environment variables of TLS: (list $ $role). */}}
{{- define "herald.tlsEnv" -}}
{{- $root := index . 0 -}}
{{- $env := dict -}}
{{- if $root.Values.internalTls.enabled }}
{{- $_ := set $env "HERALD_INTERNAL_TLS__CERT_FILE" "/etc/herald-tls/internal/tls.crt" }}
{{- $_ := set $env "HERALD_INTERNAL_TLS__KEY_FILE" "/etc/herald-tls/internal/tls.key" }}
{{- $_ := set $env "HERALD_INTERNAL_TLS__CA_FILE" "/etc/herald-tls/internal/ca.crt" }}
{{- $_ := set $env "HERALD_INTERNAL_TLS__CLIENT_CA_FILE" "/etc/herald-tls/internal/ca.crt" }}
{{- end }}
{{- if and $root.Values.tls.enabled (eq (index . 1) "gateway") }}
{{- $_ := set $env "HERALD_TLS__CERT_FILE" "/etc/herald-tls/public/tls.crt" }}
{{- $_ := set $env "HERALD_TLS__KEY_FILE" "/etc/herald-tls/public/tls.key" }}
{{- if $root.Values.tls.clientCaSecret }}
{{- $_ := set $env "HERALD_TLS__CLIENT_CA_FILE" "/etc/herald-tls/public-clients/ca.crt" }}
{{- $_ := set $env "HERALD_TLS__CLIENT_CERTIFICATES" $root.Values.tls.clientCertificates }}
{{- end }}
{{- end }}
{{- toJson $env -}}
{{- end }}

{{/* Volumes of the Secrets of a map, and their mounts. */}}
{{- define "herald.secretVolumes" -}}
{{- range $name, $secret := . }}
- name: tls-{{ $name }}
  secret:
    secretName: {{ $secret | quote }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{- define "herald.secretMounts" -}}
{{- range $name, $secret := . }}
- name: tls-{{ $name }}
  mountPath: /etc/herald-tls/{{ $name }}
  readOnly: true
{{- end }}
{{- end }}

{{/* The names of Services within the cluster, as YAML: (list $ "graph" "scaler"). */}}
{{- define "herald.dnsNames" -}}
{{- $root := index . 0 -}}
{{- range rest . }}
{{- $service := printf "%s-%s" (include "herald.fullname" $root) . }}
- {{ $service }}
- {{ $service }}.{{ $root.Release.Namespace }}
- {{ $service }}.{{ $root.Release.Namespace }}.svc
- {{ include "herald.host" (list $root .) }}
{{- end }}
{{- end }}

{{/* As herald.secretVolumes, of the authority alone: a client has no use for the key of the server. */}}
{{- define "herald.authorityVolume" -}}
{{- range $name, $secret := . }}
- name: tls-{{ $name }}
  secret:
    secretName: {{ $secret | quote }}
    defaultMode: 0440
    items:
      - {key: ca.crt, path: ca.crt}
{{- end }}
{{- end }}
