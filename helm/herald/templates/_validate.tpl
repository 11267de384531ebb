{{/* Values that contradict each other, that could lose data, or that need something the cluster lacks. Each is refused with what to change. */}}

{{- define "herald.validate" -}}
{{- include "herald.validateRemoved" . }}
{{- include "herald.validateConfig" . }}
{{- include "herald.validateDependencies" . }}
{{- include "herald.validateTls" . }}
{{- include "herald.validateRetention" . }}
{{- include "herald.validateRoles" . }}
{{- include "herald.validateAutoscaling" . }}
{{- include "herald.validatePorts" . }}
{{- include "herald.validatePatches" . }}
{{- include "herald.validateEdges" . }}
{{- include "herald.validateInternal" . }}
{{- include "herald.validateAuth" . }}
{{- end }}

{{/* Herald refuses ports that others reach without credentials, so such pods would never start. */}}
{{- define "herald.validateInternal" -}}
{{- if not (or .Values.insecureNoAuth.internal .Values.internalTls.enabled) }}
{{- include "herald.refuse" "calls between the roles need no credentials, and insecureNoAuth.internal doesn't accept that: set internalTls.enabled, or insecureNoAuth.internal to true, where NetworkPolicies let only Herald's pods in." }}
{{- end }}
{{- end }}

{{- define "herald.refuse" -}}
{{- fail (printf "\n\n%s\n" .) -}}
{{- end }}

{{/* Nobody gets an open gateway without having said so. */}}
{{- define "herald.validateAuth" -}}
{{- $auth := .Values.auth -}}
{{- if and (not $auth.enabled) (not $auth.insecureNoAuth) }}
{{- include "herald.refuse" "auth.enabled is false: whoever reaches the gateway could read, post and discard everything. Set auth.enabled, or auth.insecureNoAuth to confirm it." }}
{{- end -}}
{{- if and $auth.enabled $auth.insecureNoAuth }}
{{- include "herald.refuse" "auth.enabled and auth.insecureNoAuth are both true: set one of them to false." }}
{{- end -}}
{{- end }}

{{/* Keys of former versions, and keys that other charts have. */}}
{{- define "herald.validateRemoved" -}}
{{- $values := .Values -}}
{{- range $key, $instead := dict
  "replicaCount" "set the replicas of a role, such as gateway.replicas"
  "resources" "set pods.resources for all roles, or those of one role, such as timeline.resources"
  "imagePullSecrets" "set global.imagePullSecrets"
  "imageRegistry" "set global.imageRegistry"
  "redis" "set valkey for the bundled server, or timelines for another one"
  "postgres" "set postgresql for the bundled server, or store for another one"
  "keda" "set autoscaling.mode to keda"
-}}
{{- if hasKey $values $key }}{{- include "herald.refuse" (printf "%s is not a value of this chart: %s." $key $instead) }}{{ end -}}
{{- end -}}
{{- end }}

{{/* Settings of Herald that the chart sets, and what to set instead. */}}
{{- define "herald.ownSettings" -}}
grpc: the port of gRPC is always 7700; set listenAddress for the address
http: the port of metrics is always 7701; set listenAddress for the address
operator_grpc: the port of operators' calls is always 7702; set listenAddress for the address
internal_grpc: each role has its own pods
data_dir: pods keep no data
lanes: set the lanes of a worker, such as timeline.lanes
peers: the chart names the services of its roles
nats: set nats
insecure_no_auth: set insecureNoAuth
tls: set tls
internal_tls: set internalTls
shutdown_seconds: set shutdown.seconds
shutdown_delay_seconds: set shutdown.delaySeconds
start_wait_seconds: pods wait for their dependencies within their start-up probe
store.url: set store.url or store.existingSecret
store.postgres.tls_ca_file: set store.tls.caSecret
store.encryption: set storageKey
timelines.url: set timelines.url or timelines.existingSecret
timelines.tls_ca_file: set timelines.tls.caSecret
analytics.dir: set analytics.storage
auth: set auth
telemetry.otlp: set tracing.endpoint
telemetry.log_format: set logFormat
push.vapid_private_key: set vapid.existingSecret
push.vapid_key_file: set vapid.existingSecret
push.vapid_subject: set vapid.subject
push.endpoints: set webhooks.inCluster.enabled
gateway.endpoints: set webhooks.inCluster.enabled
{{- end }}

{{/* They can't be set in `config`. */}}
{{- define "herald.validateConfig" -}}
{{- $config := default dict .Values.config -}}
{{- range $path, $instead := fromYaml (include "herald.ownSettings" .) }}
{{- $at := $config -}}
{{- $found := true -}}
{{- range splitList "." $path }}
{{- if and (kindIs "map" $at) (hasKey $at .) }}{{- $at = get $at . }}{{ else }}{{- $found = false }}{{ end }}
{{- end }}
{{- if $found }}{{- include "herald.refuse" (printf "config.%s is set by the chart: %s." $path $instead) }}{{ end -}}
{{- end -}}
{{- if gt (mul 4 (int .Values.shutdown.delaySeconds)) (int .Values.shutdown.seconds) }}
{{- include "herald.refuse" (printf "shutdown.delaySeconds must be at most a quarter of shutdown.seconds (%d), is %d: the rest of the time is for the work in flight." (int .Values.shutdown.seconds) (int .Values.shutdown.delaySeconds)) }}
{{- end -}}
{{- end }}

{{/* TLS of ports needs a certificate from one place. */}}
{{- define "herald.validateTls" -}}
{{- range $name := list "tls" "internalTls" }}
{{- $tls := get $.Values $name }}
{{- $issuer := default dict $tls.certManager.issuerRef }}
{{- if $tls.enabled }}
{{- if and $tls.existingSecret $issuer.name }}
{{- include "herald.refuse" (printf "%s.existingSecret and %s.certManager.issuerRef both name a certificate: remove one of them." $name $name) }}
{{- end }}
{{- if and (not $tls.existingSecret) (not $issuer.name) }}
{{- include "herald.refuse" (printf "%s.enabled needs a certificate: set %s.existingSecret, a Secret with tls.crt and tls.key, or %s.certManager.issuerRef.name, an issuer of cert-manager." $name $name $name) }}
{{- end }}
{{- if and $issuer.name (not ($.Capabilities.APIVersions.Has "cert-manager.io/v1")) }}
{{- include "herald.refuse" (printf "%s.certManager.issuerRef is set, and the cluster has no Certificate (cert-manager.io/v1): install cert-manager, or set %s.existingSecret. For `helm template` without a cluster, add --api-versions cert-manager.io/v1." $name $name) }}
{{- end }}
{{- else if or $tls.existingSecret $issuer.name $tls.clientCaSecret }}
{{- include "herald.refuse" (printf "%s names a certificate or an authority, and %s.enabled is false: without it the ports have no TLS. Set %s.enabled to true." $name $name $name) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "herald.validateDependencies" -}}
{{- $values := .Values -}}
{{- range list
  (dict "name" "NATS" "bundled" "nats" "external" "nats" "what" "the streams")
  (dict "name" "PostgreSQL" "bundled" "postgresql" "external" "store" "what" "the records" "embedded" true)
  (dict "name" "Valkey" "bundled" "valkey" "external" "timelines" "what" "the timelines")
}}
{{- $bundled := get $values .bundled -}}
{{- $external := get $values .external -}}
{{- $secret := $external.existingSecret -}}
{{- if eq .external "nats" }}{{- $secret = and $external.auth.secretKeys.url $external.auth.existingSecret }}{{ end -}}
{{- if and $bundled.enabled (or $external.url $secret) }}
{{- include "herald.refuse" (printf "%s.enabled installs a %s of its own, and %s names another one: set %s.enabled to false to use that one, or remove its URL and Secret." .bundled .name .external .bundled) }}
{{- end }}
{{- if and (not $bundled.enabled) (not $external.url) (not $secret) }}
{{- if .embedded }}
{{- include "herald.refuse" "postgresql.enabled is false, and neither store.url nor store.existingSecret is set: all pods share one PostgreSQL database. The embedded store belongs to a single process and can't have replicas; `herald up` uses it on one machine." }}
{{- end }}
{{- include "herald.refuse" (printf "%s.enabled is false, and no other %s is named for %s: set %s.url%s." .bundled .name .what .external (ternary ", or nats.auth.existingSecret and nats.auth.secretKeys.url" (printf " or %s.existingSecret" .external) (eq .external "nats"))) }}
{{- end }}
{{- /* What Kubernetes puts in from a Secret is no password that could be read. */}}
{{- $url := regexReplaceAll "\\$\\([A-Za-z_][A-Za-z0-9_]*\\)" (default "" $external.url) "" }}
{{- if or (regexMatch "://[^/@]*:[^/?#@]+@" $url) (regexMatch "[?&]password=[^&]" $url) (and (eq .external "nats") (regexMatch "://[^/@:]+@" $url)) }}
{{- include "herald.refuse" (printf "%s.url has a password, which everybody who may read a Deployment could read: put it into a Secret, and name that as %s." .external (ternary "nats.auth.existingSecret" (printf "%s.existingSecret" .external) (eq .external "nats"))) }}
{{- end }}
{{- end }}
{{- range $name := list "store" "timelines" }}
{{- $external := get $values $name }}
{{- $bundled := ternary $values.postgresql $values.valkey (eq $name "store") }}
{{- $variable := printf "%s_PASSWORD" (upper $name) }}
{{- $hasPassword := and $external.existingSecret $external.secretKeys.password }}
{{- if and $external.url $external.existingSecret (not $external.secretKeys.password) }}
{{- include "herald.refuse" (printf "%s.url is set, so %s.existingSecret is not read: remove %s.url to take the whole URL from the Secret, or set %s.secretKeys.password to take the password from it, and write $(%s) where the URL has it." $name $name $name $name $variable) }}
{{- end }}
{{- if and $external.existingSecret (not $external.url) (not $external.secretKeys.url) }}
{{- include "herald.refuse" (printf "%s.existingSecret is set, and neither %s.url nor %s.secretKeys.url: set the URL, or the key that has it." $name $name $name) }}
{{- end }}
{{- if and (contains (printf "$(%s)" $variable) (default "" $external.url)) (not $hasPassword) (not (hasKey (default dict $values.pods.extraEnv) $variable)) }}
{{- include "herald.refuse" (printf "%s.url has $(%s), and no Secret is named that has it: set %s.existingSecret and %s.secretKeys.password." $name $variable $name $name) }}
{{- end }}
{{- if and $bundled.enabled $external.tls.caSecret }}
{{- include "herald.refuse" (printf "%s.tls is for a server of your own, and the bundled one has no TLS: set %s.enabled to false, or remove %s.tls." $name (ternary "postgresql" "valkey" (eq $name "store")) $name) }}
{{- end }}
{{- end }}
{{- include "herald.validateAuthorities" . }}
{{- range $path, $key := dict "postgresql.auth" "passwordKey" "valkey.auth" "passwordKey" "vapid" "secretKey" "storageKey" "secretKey" "auth" "secretKey" }}
{{- $at := $values }}
{{- range splitList "." $path }}{{- $at = get $at . }}{{ end }}
{{- $made := get (dict "vapid" "private-key" "storageKey" "key" "auth" "root-key") $path | default "password" }}
{{- if and (not $at.existingSecret) (ne (get $at $key) $made) }}
{{- include "herald.refuse" (printf "%s.%s names a key of %s.existingSecret, which is not set: the Secret that the chart makes has the key %s, and another key would be another secret. Set %s.existingSecret, or remove %s.%s." $path $key $path $made $path $path $key) }}
{{- end }}
{{- end }}
{{- $nats := .Values.nats -}}
{{- if $nats.enabled }}
{{- range $key, $value := dict "tls.required" $nats.tls.required "tls.caSecret" $nats.tls.caSecret "tls.clientSecret" $nats.tls.clientSecret "existingStreams" $nats.existingStreams "monitoring.endpoint" $nats.monitoring.endpoint "monitoring.https" $nats.monitoring.https }}
{{- if $value }}
{{- include "herald.refuse" (printf "nats.%s is for a NATS of your own, and nats.enabled installs one: set nats.enabled to false and nats.url, or remove nats.%s." $key $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and $nats.enabled (or $nats.auth.existingSecret $nats.auth.roleSecrets) }}
{{- include "herald.refuse" "nats.auth is for a NATS of your own, and nats.enabled installs one whose users the chart makes: set nats.enabled to false and nats.url, or remove nats.auth." }}
{{- end }}
{{- if and (not $nats.enabled) (or $nats.auth.existingSecret $nats.auth.roleSecrets) }}
{{- $kinds := list }}
{{- range $kind, $key := omit $nats.auth.secretKeys "url" "password" }}{{- if $key }}{{- $kinds = append $kinds $kind }}{{ end }}{{ end }}
{{- $url := $nats.auth.secretKeys.url }}
{{- if and $nats.url $url }}
{{- include "herald.refuse" "nats.url and nats.auth.secretKeys.url are both set: remove one of them." }}
{{- end }}
{{- if and (not $kinds) (not $url) }}
{{- include "herald.refuse" "nats.auth names a Secret, and nats.auth.secretKeys none of the credentials in it: set one of nkeySeed, user, token and credentials to its key." }}
{{- end }}
{{- range $role := fromJsonArray (include "herald.natsUsers" .) }}
{{- if and (not (include "herald.natsSecret" (list $ $role))) (or (ne $role "scaler") (include "herald.hasScaler" $)) }}
{{- include "herald.refuse" (printf "nats.auth.roleSecrets has no Secret for %s, which would connect without credentials: add it, or set nats.auth.existingSecret for the roles without one." $role) }}
{{- end }}
{{- end }}
{{- if gt (len $kinds) 1 }}
{{- include "herald.refuse" (printf "nats.auth.secretKeys has keys for %s: a connection has one kind of credentials. Leave one of them, and set the others to \"\"." (join " and " $kinds)) }}
{{- end }}
{{- end }}
{{- $replicas := dig "topology" "replicas" 0 (default dict .Values.config) | int -}}
{{- if and $nats.enabled (not (has (int $nats.replicas) (list 1 3))) }}
{{- include "herald.refuse" (printf "nats.replicas must be 1 or 3, is %d: an even number of servers tolerates no more failures than one fewer, and more than 3 belong to the chart of NATS." (int $nats.replicas)) }}
{{- end }}
{{- if and $nats.enabled (gt $replicas (int $nats.replicas)) }}
{{- include "herald.refuse" (printf "config.topology.replicas is %d, and nats.replicas gives only %d server: a stream can't have more replicas than there are servers. Set nats.replicas to 3, or leave config.topology.replicas out." $replicas (int $nats.replicas)) }}
{{- end }}
{{- if $nats.enabled }}
{{- $store := include "herald.bytes" $nats.maxFileStore | int64 }}
{{- $size := include "herald.bytes" $nats.storage.size | int64 }}
{{- if gt $store $size }}
{{- include "herald.refuse" (printf "nats.maxFileStore (%s) is more than nats.storage.size (%s): the disk would be full before the streams are." (include "herald.text" $nats.maxFileStore) (include "herald.text" $nats.storage.size)) }}
{{- end }}
{{- $sum := 0 }}
{{- range $name, $stream := (include "herald.topologyDefaults" . | fromYaml).streams }}
{{- $sum = add $sum (dig "topology" $name "bytes_max" $stream.bytes_max (default dict $.Values.config) | int64) }}
{{- end }}
{{- if gt (int64 $sum) $store }}
{{- include "herald.refuse" (printf "the streams reserve %d MiB, and nats.maxFileStore is %d MiB: NATS refuses to make them. Set nats.maxFileStore and nats.storage.size higher, or config.topology.STREAM.bytes_max lower." (div $sum 1048576) (div $store 1048576)) }}
{{- end }}
{{- end }}
{{- if and .Values.valkey.enabled (dig "limits" "memory" "" (default dict .Values.valkey.resources)) }}
{{- $limit := include "herald.bytes" .Values.valkey.resources.limits.memory | int64 }}
{{- $memory := regexReplaceAll "b$" .Values.valkey.maxMemory "i" | replace "ki" "Ki" | replace "mi" "Mi" | replace "gi" "Gi" | include "herald.bytes" | int64 }}
{{- if or (eq $memory 0) (ge $memory $limit) }}
{{- include "herald.refuse" (printf "valkey.maxMemory (%s) must be less than valkey.resources.limits.memory (%s), and not 0: Kubernetes would end Valkey before it refuses to take more." .Values.valkey.maxMemory (include "herald.text" .Values.valkey.resources.limits.memory)) }}
{{- end }}
{{- end }}
{{- if .Values.postgresql.enabled }}
{{- $each := dig "store" "postgres" "connections_max" 8 (default dict .Values.config) | int }}
{{- $pods := 0 }}
{{- range fromJsonArray (include "herald.workloads" .) }}
{{- if ne .role "scaler" }}{{- $pods = add $pods (ternary (dig "autoscaling" "maxReplicas" 1 .values) .values.replicas .autoscaled | int) }}{{ end }}
{{- end }}
{{- if gt (add (mul $pods $each) 10) (int .Values.postgresql.maxConnections) }}
{{- include "herald.refuse" (printf "%d pods with %d connections each can exceed postgresql.maxConnections (%d): set it higher, config.store.postgres.connections_max lower, or fewer replicas." $pods $each (int .Values.postgresql.maxConnections)) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Retention and attempts where the values set none; a test compares them with those of Herald. */}}
{{- define "herald.topologyDefaults" -}}
streams:
  posts: {age_seconds_max: 604800, bytes_max: 4294967296, consumers: [archive, analytics, fanout]}
  slices: {age_seconds_max: 86400, bytes_max: 268435456, consumers: [slice]}
  timeline: {age_seconds_max: 259200, bytes_max: 2147483648, consumers: [timeline]}
  push: {age_seconds_max: 86400, bytes_max: 1073741824, consumers: [push]}
  events: {age_seconds_max: 259200, bytes_max: 1073741824, consumers: [analytics]}
  later: {age_seconds_max: 604800, bytes_max: 268435456, consumers: [later]}
  advisories: {age_seconds_max: 604800, bytes_max: 134217728, consumers: [deadletter]}
  dlq: {age_seconds_max: 2592000, bytes_max: 1073741824, consumers: [deadletter]}
  redrive: {age_seconds_max: 604800, bytes_max: 536870912, consumers: [redrive]}
consumers:
  archive: {attempts_max: 1000, ack_wait_seconds: 5, delay_ms_max: 30000}
  analytics: {attempts_max: 1000, ack_wait_seconds: 30, delay_ms_max: 30000}
  fanout: {attempts_max: 1000, ack_wait_seconds: 2, delay_ms_max: 30000}
  slice: {attempts_max: 1000, ack_wait_seconds: 2, delay_ms_max: 30000}
  timeline: {attempts_max: 1000, ack_wait_seconds: 2, delay_ms_max: 30000}
  push: {attempts_max: 1000, ack_wait_seconds: 2, delay_ms_max: 30000}
  later: {attempts_max: 20000, ack_wait_seconds: 2, delay_ms_max: 30000}
  deadletter: {attempts_max: 20000, ack_wait_seconds: 5, delay_ms_max: 30000}
  redrive: {attempts_max: 5, ack_wait_seconds: 5, delay_ms_max: 30000}
{{- end }}

{{/* A message that its stream removes before its last attempt is lost. */}}
{{- define "herald.validateRetention" -}}
{{- $defaults := include "herald.topologyDefaults" . | fromYaml -}}
{{- $topology := default dict (default dict .Values.config).topology -}}
{{- range $name, $stream := $defaults.streams }}
{{- $age := dig $name "age_seconds_max" $stream.age_seconds_max $topology | int64 }}
{{- range $kind := $stream.consumers }}
{{- $default := get $defaults.consumers $kind }}
{{- $attempts := dig "consumers" $kind "attempts_max" $default.attempts_max $topology | int64 }}
{{- $wait := dig "consumers" $kind "ack_wait_seconds" $default.ack_wait_seconds $topology | int64 }}
{{- $delay := div (add (dig "consumers" $kind "retry" "delay_ms_max" $default.delay_ms_max $topology | int64) 999) 1000 }}
{{- $seconds := mul $attempts (max $wait $delay) }}
{{- if lt $age $seconds }}
{{- include "herald.refuse" (printf "config.topology.%s.age_seconds_max is %d, less than the %d s that config.topology.consumers.%s.attempts_max (%d) attempts can take: a message would be removed before its last attempt, and its deliveries lost. Set the retention to at least %d, or fewer attempts." $name $age $seconds $kind $attempts $seconds) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "herald.validateRoles" -}}
{{- $root := . -}}
{{- range $role := list "fanout" "timeline" "push" }}
{{- $covered := list }}
{{- $names := list }}
{{- range (get $root.Values $role).lanes }}
{{- $covered = concat $covered .lanes }}
{{- if has .name $names }}{{- include "herald.refuse" (printf "%s.lanes has two entries named %q: each one is a Deployment, and needs a name of its own." $role .name) }}{{ end }}
{{- $names = append $names .name }}
{{- end }}
{{- range $lane := list "high" "normal" "low" }}
{{- if not (has $lane $covered) }}
{{- include "herald.refuse" (printf "%s.lanes has no entry for the lane %s: posts of that lane would never be delivered. Add it to the lanes of an entry." $role $lane) }}
{{- end }}
{{- end }}
{{- end }}
{{- range $workload := fromJsonArray (include "herald.workloads" .) }}
{{- $values := $workload.values }}
{{- if and (not $workload.autoscaled) (lt (int $values.replicas) 1) }}
{{- $why := "posts wait in their streams until these remove them" }}
{{- if eq $workload.role "deadletter" }}{{- $why = "dead letters would never be recorded, nothing could be redriven, and old data would stay" }}{{ end }}
{{- if has $workload.role (list "gateway" "graph") }}{{- $why = "no call would be answered" }}{{ end }}
{{- if eq $workload.role "scaler" }}{{- $why = "KEDA would get no answer" }}{{ end }}
{{- include "herald.refuse" (printf "%s.replicas must be at least 1, is 0: without %s %s." $workload.role $workload.name $why) }}
{{- end }}
{{- $budget := $values.podDisruptionBudget }}
{{- if and $budget.enabled (has (toString $budget.maxUnavailable) (list "0" "0%")) }}
{{- include "herald.refuse" (printf "%s.podDisruptionBudget.maxUnavailable must be at least 1, is %v: no node with a pod of %s could be drained. Set podDisruptionBudget.enabled to false to have no budget." $workload.role $budget.maxUnavailable $workload.name) }}
{{- end }}
{{- $needed := include "herald.gracePeriod" $root | int }}
{{- with $values.terminationGracePeriodSeconds }}
{{- if lt (int .) $needed }}
{{- include "herald.refuse" (printf "%s.terminationGracePeriodSeconds must be at least %d, is %d: Herald takes up to shutdown.seconds (%d) and shutdown.delaySeconds (%d) to hand over its work, and would be killed before." $workload.role $needed (int .) (int $root.Values.shutdown.seconds) (int $root.Values.shutdown.delaySeconds)) }}
{{- end }}
{{- end }}
{{- end }}
{{- $analytics := .Values.analytics -}}
{{- if and $analytics.storage.existingClaim (eq $analytics.storage.type "emptyDir") }}
{{- include "herald.refuse" "analytics.storage.existingClaim is set, and analytics.storage.type is emptyDir: set the type to persistentVolumeClaim, or remove the claim." }}
{{- end }}
{{- if not (include "herald.analyticsShared" .) }}
{{- if gt (int $analytics.replicas) 1 }}
{{- include "herald.refuse" (printf "analytics.replicas is %d, and analytics.storage is a directory of one pod: all analytics pods need the same directory, because each deletes the uncounted files of one that died. Set analytics.storage.type to persistentVolumeClaim with accessModes [ReadWriteMany], or analytics.replicas to 1." (int $analytics.replicas)) }}
{{- end }}
{{- if and $analytics.autoscaling.enabled (ne .Values.autoscaling.mode "none") }}
{{- include "herald.refuse" "analytics.autoscaling.enabled needs a directory that all analytics pods share: set analytics.storage.type to persistentVolumeClaim with accessModes [ReadWriteMany], or analytics.autoscaling.enabled to false." }}
{{- end }}
{{- end }}
{{- end }}

{{- define "herald.validateAutoscaling" -}}
{{- $root := . -}}
{{- $auto := .Values.autoscaling -}}
{{- if and (eq $auto.mode "keda") (not (.Capabilities.APIVersions.Has "keda.sh/v1alpha1")) }}
{{- include "herald.refuse" "autoscaling.mode is keda, and the cluster has no ScaledObjects (keda.sh/v1alpha1): install KEDA first (k8s/addons/README.md), or set autoscaling.mode to none. For `helm template` without a cluster, add --api-versions keda.sh/v1alpha1." }}
{{- end }}
{{- if ne $auto.mode "none" }}
{{- if and (eq $auto.mode "keda") (eq $auto.signal "pending") (not .Values.nats.enabled) (not .Values.nats.monitoring.endpoint) }}
{{- include "herald.refuse" "autoscaling by pending messages needs nats.monitoring.endpoint: the headless service of your NATS with its monitoring port, such as nats-headless.nats.svc.cluster.local:8222. Or set autoscaling.signal to slo, which needs no monitoring port." }}
{{- end }}
{{- range $workload := fromJsonArray (include "herald.workloads" .) }}
{{- if $workload.autoscaled }}
{{- $scaling := deepCopy (omit $auto "mode" "signal" "hpa") }}
{{- $_ := include "herald.merge" (list $scaling $workload.values.autoscaling) }}
{{- if lt (int $scaling.maxReplicas) (max 1 (int $scaling.minReplicas)) }}
{{- include "herald.refuse" (printf "%s.autoscaling.maxReplicas (%d) must be at least 1 and not less than minReplicas (%d)." $workload.role (int $scaling.maxReplicas) (int $scaling.minReplicas)) }}
{{- end }}
{{- if and (eq (int $scaling.minReplicas) 0) (not (has $workload.role (list "fanout" "timeline" "push"))) }}
{{- include "herald.refuse" (printf "%s.autoscaling.minReplicas must be at least 1, is 0: other roles wait for %s. Only fanout, timeline and push can be scaled to zero." $workload.role $workload.role) }}
{{- end }}
{{- if eq $auto.signal "pending" }}
{{- range fromJsonArray (include "herald.workConsumers" $workload) }}
{{- if not (gt (get $scaling.pendingPerReplica .kind | int64) 0) }}
{{- include "herald.refuse" (printf "%s.autoscaling.pendingPerReplica.%s must be at least 1: it is the number of pending messages for which one more replica is started." $workload.role .kind) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* A policy that doesn't allow the port of a URL keeps every pod from its server. */}}
{{- define "herald.validatePorts" -}}
{{- $policy := .Values.networkPolicy -}}
{{- range list
  (list "nats.url" "nats" (ternary "" .Values.nats.url .Values.nats.enabled) "4222")
  (list "store.url" "store" (ternary "" .Values.store.url .Values.postgresql.enabled) "5432")
  (list "timelines.url" "timelines" (ternary "" .Values.timelines.url .Values.valkey.enabled) "6379")
  (list "tracing.endpoint" "tracing" .Values.tracing.endpoint (ternary "443" "80" (hasPrefix "https:" .Values.tracing.endpoint)))
}}
{{- $key := index . 0 }}
{{- $name := index . 1 }}
{{- $usual := index . 3 }}
{{- $allowed := list }}
{{- range (get $policy $name).ports }}{{- $allowed = append $allowed (include "herald.text" . | trimSuffix "/TCP") }}{{ end }}
{{- if and $policy.enabled (index . 2) $allowed }}
{{- range splitList "," (index . 2) }}
{{- $host := regexReplaceAll "[/?#].*$" (regexReplaceAll "^[a-z]+://([^/@]*@)?" . "") "" }}
{{- $port := regexFind ":[0-9]+$" $host | trimPrefix ":" | default $usual }}
{{- if not (has $port $allowed) }}
{{- include "herald.refuse" (printf "%s has the port %s, and networkPolicy.%s.ports allows only %s: no pod could connect. Set networkPolicy.%s.ports to [%s]." $key $port $name (join " and " $allowed) $name $port) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "herald.validateEdges" -}}
{{- $service := .Values.service -}}
{{- range $key, $types := dict "nodePort" (list "NodePort" "LoadBalancer") "externalTrafficPolicy" (list "NodePort" "LoadBalancer") "loadBalancerClass" (list "LoadBalancer") "loadBalancerSourceRanges" (list "LoadBalancer") }}
{{- if and (get $service $key) (not (has $service.type $types)) }}
{{- include "herald.refuse" (printf "service.%s is for a Service of type %s, and service.type is %s: change the type, or remove service.%s." $key (join " or " $types) $service.type $key) }}
{{- end }}
{{- end }}
{{- if .Values.grpcRoute.enabled }}
{{- if not (.Capabilities.APIVersions.Has "gateway.networking.k8s.io/v1/GRPCRoute") }}
{{- include "herald.refuse" "grpcRoute.enabled is true, and the cluster has no GRPCRoute (gateway.networking.k8s.io/v1): install the Gateway API 1.1 or newer, or set ingress. For `helm template` without a cluster, add --api-versions gateway.networking.k8s.io/v1/GRPCRoute." }}
{{- end }}
{{- if not .Values.grpcRoute.parentRefs }}
{{- include "herald.refuse" "grpcRoute.parentRefs must name the Gateway that routes to Herald, such as [{name: public, namespace: gateways}]." }}
{{- end }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) }}
{{- include "herald.refuse" "ingress.hosts must have at least one host name." }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.tls) }}
{{- include "herald.refuse" "ingress.tls must be set: clients of gRPC reach an Ingress by HTTP/2, which controllers offer over TLS only." }}
{{- end }}
{{- range $key, $kind := dict "podMonitor" "PodMonitor" "rules" "PrometheusRule" }}
{{- if and (get $.Values.metrics $key).enabled (not ($.Capabilities.APIVersions.Has "monitoring.coreos.com/v1")) }}
{{- include "herald.refuse" (printf "metrics.%s.enabled is true, and the cluster has no %s (monitoring.coreos.com/v1): install the Prometheus operator, or set it to false. For `helm template` without a cluster, add --api-versions monitoring.coreos.com/v1." $key $kind) }}
{{- end }}
{{- end }}
{{- end }}

{{/* A patch whose target is misspelt would change nothing. With `*` it may be for objects that other values make. */}}
{{- define "herald.validatePatches" -}}
{{- $root := . -}}
{{- if .Values.patches }}
{{- $made := list }}
{{- range $template, $isMade := dict
  "accounts" true "autoscalers" (ne .Values.autoscaling.mode "none") "configMaps" true "deployments" true "disruptionBudgets" true
  "jaeger" .Values.jaeger.enabled "jobs" true "nats" .Values.nats.enabled "networkPolicies" .Values.networkPolicy.enabled
  "dashboards" .Values.metrics.dashboards.enabled "podMonitor" .Values.metrics.podMonitor.enabled
  "prometheusRule" .Values.metrics.rules.enabled "postgresql" .Values.postgresql.enabled "routes" true "services" true "test" true
  "valkey" .Values.valkey.enabled
}}
{{- if $isMade }}
{{- range regexSplit "(?m)^---$" (include (printf "herald.%s" $template) $root) -1 }}
{{- $object := fromYaml . }}
{{- if $object }}{{- $made = append $made (printf "%s %s" $object.kind $object.metadata.name) }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- range $index, $patch := .Values.patches }}
{{- $name := tpl .target.name $root }}
{{- if and (not (hasSuffix "*" $name)) (not (has (printf "%s %s" .target.kind $name) $made)) }}
{{- include "herald.refuse" (printf "patches[%d] is for the %s %q, and these values make none of this name: correct patches[%d].target, or remove the patch. A name may end with *." $index .target.kind $name $index) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Herald refuses authorities that it would verify nothing with. URLs in Secrets are not known here. */}}
{{- define "herald.validateAuthorities" -}}
{{- $store := .Values.store -}}
{{- if and $store.tls.caSecret $store.url (not (hasKey (default dict .Values.pods.extraEnv) "PGSSLMODE")) }}
{{- $query := regexFind "[?].*$" $store.url }}
{{- $mode := regexFindAll "[?&]ssl-?mode=[^&]*" $query -1 | last | default "" | regexFind "[^=]*$" | lower }}
{{- /* What Kubernetes puts in, or what is percent-encoded, could be a mode. */}}
{{- $isKnown := has $mode (list "disable" "allow" "prefer" "require") }}
{{- if or $isKnown (not (or $mode (contains "$(" $query) (contains "%" $query))) }}
{{- include "herald.refuse" "store.tls.caSecret is set, and store.url does not ask for a verified server, so no pod would start: set sslmode=verify-full (or verify-ca) in store.url, or remove store.tls.caSecret." }}
{{- end }}
{{- end }}
{{- if and .Values.timelines.tls.caSecret (hasPrefix "redis:" .Values.timelines.url) }}
{{- include "herald.refuse" "timelines.tls.caSecret is set, and timelines.url begins with redis://, which is without TLS, so no pod would start: set rediss:// in timelines.url, or remove timelines.tls.caSecret." }}
{{- end }}
{{- end }}

{{/* A quantity of Kubernetes in bytes. */}}
{{- define "herald.bytes" -}}
{{- $text := include "herald.text" . -}}
{{- $units := dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "" 1 -}}
{{- $unit := regexFind "[A-Za-z]*$" $text -}}
{{- if not (hasKey $units $unit) }}{{- include "herald.refuse" (printf "%q is no size: write it as 10Gi or 500Mi." $text) }}{{ end -}}
{{- mulf (trimSuffix $unit $text | float64) (get $units $unit) | int64 -}}
{{- end }}
