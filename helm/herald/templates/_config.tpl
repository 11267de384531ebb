{{/* The configuration file of Herald's processes, and their environment. */}}

{{/* What the chart sets in the configuration; the values under `config` are merged over it. */}}
{{- define "herald.settings" -}}
{{- $settings := dict
  "data_dir" "/tmp/herald"
  "shutdown_seconds" .Values.shutdown.seconds
  "shutdown_delay_seconds" .Values.shutdown.delaySeconds
  "start_wait_seconds" 280
  "analytics" (dict "dir" "/var/lib/herald/analytics")
  "telemetry" (dict "log_format" .Values.logFormat)
  "topology" (dict "replicas" (ternary .Values.nats.replicas 1 .Values.nats.enabled))
  "push" dict
  "gateway" dict
-}}
{{- if .Values.postgresql.enabled }}
{{- $_ := set $settings "store" (dict "postgres" (dict "connections_max" 8)) }}
{{- end }}
{{- if .Values.webhooks.inCluster.enabled }}
{{- $endpoints := dict "allow_http" true "allow_private" true }}
{{- $_ := set $settings.gateway "endpoints" $endpoints }}
{{- $_ := set $settings.push "endpoints" $endpoints }}
{{- end }}
{{- with .Values.auth.jwt }}{{- $_ := set $settings "auth" (dict "jwt" .) }}{{ end }}
{{- with .Values.vapid.subject }}{{- $_ := set $settings.push "vapid_subject" . }}{{ end }}
{{- $_ := include "herald.merge" (list $settings (deepCopy (default dict .Values.config))) }}
{{- $files := dict }}
{{- with .Values.store.tls.caSecret }}{{- $_ := set $files "store" (dict "postgres" (dict "tls_ca_file" "/etc/herald-tls/store/ca.crt")) }}{{ end }}
{{- with .Values.timelines.tls.caSecret }}{{- $_ := set $files "timelines" (dict "tls_ca_file" "/etc/herald-tls/timelines/ca.crt") }}{{ end }}
{{- $_ := include "herald.merge" (list $settings $files) }}
{{- toJson $settings -}}
{{- end }}

{{/* The configuration as TOML, a line a key. The keys of a map are sorted, so the text is always the same. */}}
{{- define "herald.toml" -}}
{{- include "herald.tomlLines" (list "" (fromJson (include "herald.settings" .))) | trim }}
{{ end }}

{{- define "herald.tomlLines" -}}
{{- $prefix := index . 0 -}}
{{- range $key, $value := index . 1 }}
{{- if kindIs "map" $value }}{{ include "herald.tomlLines" (list (printf "%s%s." $prefix $key) $value) }}
{{- else if and (kindIs "float64" $value) (eq (floor $value) $value) }}{{ printf "%s%s = %d\n" $prefix $key (int64 $value) }}
{{- else if not (kindIs "invalid" $value) }}{{ printf "%s%s = %s\n" $prefix $key (toJson $value) }}
{{- end }}
{{- end }}
{{- end }}

{{/* The environment variable of the root key, by its name: (list $ name). */}}
{{- define "herald.rootKeyEnv" -}}
{{- $root := index . 0 -}}
{{- if $root.Values.auth.enabled -}}
{{- toJson (dict (index . 1) (dict "valueFrom" (dict "secretKeyRef" (dict "name" (default (printf "%s-root-key" (include "herald.fullname" $root)) $root.Values.auth.existingSecret) "key" $root.Values.auth.secretKey)))) -}}
{{- else -}}
{}
{{- end -}}
{{- end }}

{{/* The Secret with a key, its name, and whether it is absent: (list $ "nats" role) and so on. */}}
{{- define "herald.natsSecret" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- if $root.Values.nats.enabled -}}{{ include "herald.fullname" $root }}-nats-{{ $role }}
{{- else -}}{{ get $root.Values.nats.auth.roleSecrets $role | default $root.Values.nats.auth.existingSecret }}{{- end -}}
{{- end }}

{{- define "herald.natsUrl" -}}
{{- if .Values.nats.enabled -}}nats://{{ include "herald.host" (list . "nats") }}:4222
{{- else -}}{{ .Values.nats.url }}{{- end -}}
{{- end }}

{{/* Environment variables for NATS: (list $ role). */}}
{{- define "herald.natsEnv" -}}
{{- $root := index . 0 -}}
{{- $env := dict "HERALD_NATS__TOPOLOGY" "verify" -}}
{{- $secret := include "herald.natsSecret" . -}}
{{- $keys := ternary (dict "nkeySeed" "seed") $root.Values.nats.auth.secretKeys $root.Values.nats.enabled -}}
{{- with include "herald.natsUrl" $root }}{{- $_ := set $env "HERALD_NATS__URL" . }}{{ end }}
{{- if $secret }}
{{- $names := dict "nkeySeed" "NKEY_SEED" "user" "USER" "password" "PASSWORD" "token" "TOKEN" "credentials" "CREDENTIALS" "url" "URL" }}
{{- range $kind, $key := $keys }}
{{- if $key }}
{{- $_ := set $env (printf "HERALD_NATS__%s" (get $names $kind)) (dict "valueFrom" (dict "secretKeyRef" (dict "name" $secret "key" $key))) }}
{{- end }}
{{- end }}
{{- end }}
{{- with $root.Values.nats.tls }}
{{- if .required }}{{- $_ := set $env "HERALD_NATS__TLS__REQUIRED" "true" }}{{ end }}
{{- if .caSecret }}{{- $_ := set $env "HERALD_NATS__TLS__CA_FILE" "/etc/herald-tls/nats-ca/ca.crt" }}{{ end }}
{{- if .clientSecret }}
{{- $_ := set $env "HERALD_NATS__TLS__CERT_FILE" "/etc/herald-tls/nats-client/tls.crt" }}
{{- $_ := set $env "HERALD_NATS__TLS__KEY_FILE" "/etc/herald-tls/nats-client/tls.key" }}
{{- end }}
{{- end }}
{{- toJson $env -}}
{{- end }}

{{/* Environment variables for PostgreSQL or for the timelines: (list $ "store"). */}}
{{- define "herald.storeEnv" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $values := get $root.Values $name -}}
{{- $upper := upper $name -}}
{{- $bundled := ternary $root.Values.postgresql $root.Values.valkey (eq $name "store") -}}
{{- $env := dict -}}
{{- if $bundled.enabled }}
{{- $default := printf "%s-%s" (include "herald.fullname" $root) (ternary "postgresql" "valkey" (eq $name "store")) }}
{{- $_ := set $env (printf "%s_PASSWORD" $upper) (dict "valueFrom" (dict "secretKeyRef" (dict "name" (default $default $bundled.auth.existingSecret) "key" $bundled.auth.passwordKey))) }}
{{- $url := printf "redis://:$(TIMELINES_PASSWORD)@%s:6379" (include "herald.host" (list $root "valkey")) }}
{{- if eq $name "store" }}{{- $url = printf "postgres://herald:$(STORE_PASSWORD)@%s:5432/herald" (include "herald.host" (list $root "postgresql")) }}{{ end }}
{{- $_ := set $env (printf "HERALD_%s__URL" $upper) $url }}
{{- else }}
{{- with $values.url }}{{- $_ := set $env (printf "HERALD_%s__URL" $upper) . }}{{ end }}
{{- if $values.existingSecret }}
{{- with $values.secretKeys.password }}{{- $_ := set $env (printf "%s_PASSWORD" $upper) (dict "valueFrom" (dict "secretKeyRef" (dict "name" $values.existingSecret "key" .))) }}{{ end }}
{{- if not $values.url }}{{- $_ := set $env (printf "HERALD_%s__URL" $upper) (dict "valueFrom" (dict "secretKeyRef" (dict "name" $values.existingSecret "key" $values.secretKeys.url))) }}{{ end }}
{{- end }}
{{- end }}
{{- toJson $env -}}
{{- end }}

{{/* Environment variables of the storage key, for the roles that use devices. */}}
{{- define "herald.storageKeyEnv" -}}
{{- $name := default (printf "%s-storage-key" (include "herald.fullname" .)) .Values.storageKey.existingSecret -}}
{{- $key := dict "valueFrom" (dict "secretKeyRef" (dict "name" $name "key" .Values.storageKey.secretKey)) -}}
{{- $env := dict -}}
{{- if eq .Values.storageKey.mode "encrypt" }}
{{- $_ := set $env "HERALD_STORE__ENCRYPTION__KEY" $key }}
{{- $_ := set $env "HERALD_STORE__ENCRYPTION__PREVIOUS_KEYS" (dict "valueFrom" (dict "secretKeyRef" (dict "name" $name "key" "previous-keys" "optional" true))) }}
{{- else if eq .Values.storageKey.mode "read" }}
{{- $_ := set $env "HERALD_STORE__ENCRYPTION__PREVIOUS_KEYS" $key }}
{{- end }}
{{- toJson $env -}}
{{- end }}

{{/* Environment variables of traces: (list $ role). */}}
{{- define "herald.tracingEnv" -}}
{{- $root := index . 0 -}}
{{- $env := dict -}}
{{- with include "herald.otlp" $root }}
{{- $_ := set $env "OTEL_EXPORTER_OTLP_ENDPOINT" . }}
{{- $_ := set $env "HERALD_TELEMETRY__SAMPLING_RATIO" (toString $root.Values.tracing.samplingRatio) }}
{{- if $root.Values.tracing.brokerHops }}{{ $_ := set $env "HERALD_TELEMETRY__BROKER_HOPS" "true" }}{{ end }}
{{- $_ := set $env "OTEL_RESOURCE_ATTRIBUTES" "k8s.namespace.name=$(POD_NAMESPACE),k8s.pod.name=$(POD_NAME)" }}
{{- end }}
{{- toJson $env -}}
{{- end }}

{{- define "herald.otlp" -}}
{{- if .Values.tracing.endpoint -}}{{ .Values.tracing.endpoint }}
{{- else if .Values.jaeger.enabled -}}http://{{ include "herald.host" (list . "jaeger") }}:4317{{- end -}}
{{- end }}

{{/*
The list of variables of a container: (list $ $own $extra $where), the chart's and the user's. No name occurs twice. $(NAME) reaches only
variables before it, so those from Secrets come first, and those that use others last; names are sorted, so that the text is always the same.
*/}}
{{- define "herald.env" -}}
{{- $root := index . 0 -}}
{{- $own := index . 1 -}}
{{- $extra := index . 2 -}}
{{- $where := index . 3 -}}
{{- $settings := fromYaml (include "herald.ownSettings" $root) -}}
{{- range $name, $value := $extra }}
{{- if hasKey (default dict $root.Values.pods.extraEnv) $name }}{{- $where = "pods" }}{{ end }}
{{- range $path, $instead := omit $settings "nats" }}
{{- $variable := printf "HERALD_%s" (upper $path | replace "." "__") }}
{{- if and (not (hasKey $own $name)) (or (has $name (list $variable (printf "%s_FILE" $variable))) (hasPrefix (printf "%s__" $variable) $name)) }}
{{- include "herald.refuse" (printf "%s.extraEnv.%s is a setting that the chart sets: %s." $where $name $instead) }}
{{- end }}
{{- end }}
{{- if hasKey $own $name }}
{{- fail (printf "%s.extraEnv.%s is a variable that the chart sets: remove it, and set what it stands for (nats, store, timelines, vapid, storageKey, tracing or config)" $where $name) }}
{{- end }}
{{- end }}
{{- $all := merge (dict) $own (default dict $extra) -}}
{{- range $name := keys $all | sortAlpha }}
{{- $value := get $all $name }}
{{- if kindIs "map" $value }}
- name: {{ $name | quote }}
  {{- toYaml $value | nindent 2 }}
{{- end }}
{{- end }}
{{- range $usesOthers := list false true }}
{{- range $name := keys $all | sortAlpha }}
{{- $value := get $all $name }}
{{- if and (not (kindIs "map" $value)) (eq $usesOthers (contains "$(" (toString $value))) }}
- name: {{ $name | quote }}
  value: {{ include "herald.text" $value | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
