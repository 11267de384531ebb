{{/* The Deployments of Herald's roles, and what each role needs. */}}

{{/* What a role uses, and which peers it calls. */}}
{{- define "herald.roles" -}}
gateway: {store: true, timelines: true, devices: true, vapid: true, peers: [graph, analytics, deadletter], serves: true}
archive: {store: true}
graph: {store: true, serves: true}
fanout: {store: true, peers: [graph]}
timeline: {store: true, timelines: true}
push: {store: true, devices: true, vapid: true}
analytics: {store: true, serves: true}
deadletter: {store: true, timelines: true, serves: true}
scaler: {serves: true}
{{- end }}

{{/* The consumers whose pending messages are the work of a role. Each lane has those of `lanes`; any process of the role has `all`. */}}
{{- define "herald.consumers" -}}
archive:
  all:
    - {stream: POSTS, consumer: archive, kind: archive}
    - {stream: REDRIVE, consumer: redrive-archive, kind: redrive}
fanout:
  lanes:
    - {stream: POSTS, consumer: fanout, kind: fanout}
    - {stream: SLICES, consumer: slice, kind: slice}
  all:
    - {stream: REDRIVE, consumer: redrive-fanout, kind: redrive}
    - {stream: REDRIVE, consumer: redrive-slice, kind: redrive}
timeline:
  lanes:
    - {stream: TIMELINE, consumer: timeline, kind: timeline}
  all:
    - {stream: REDRIVE, consumer: redrive-timeline, kind: redrive}
push:
  lanes:
    - {stream: PUSH, consumer: push, kind: push}
  all:
    - {stream: LATER, consumer: later, kind: later}
    - {stream: REDRIVE, consumer: redrive-push, kind: redrive}
analytics:
  all:
    - {stream: POSTS, consumer: analytics-posts, kind: posts}
    - {stream: EVENTS, consumer: analytics-events, kind: events}
    - {stream: REDRIVE, consumer: redrive-analytics-posts, kind: redrive}
    - {stream: REDRIVE, consumer: redrive-analytics-events, kind: redrive}
{{- end }}

{{/* Whether the scaler is installed. */}}
{{- define "herald.hasScaler" -}}
{{- $auto := .Values.autoscaling -}}
{{- if or .Values.scaler.enabled (and (ne $auto.mode "none") (eq $auto.signal "slo")) }}true{{ end -}}
{{- end }}

{{/*
All Deployments of roles, as JSON: `name`, `role`, `lanes`, `values` (those of `pods`, of the role and of the lane, merged), and
whether an autoscaler owns the number of replicas.
*/}}
{{- define "herald.workloads" -}}
{{- $root := . -}}
{{- $workloads := list -}}
{{- range $role := list "gateway" "archive" "graph" "fanout" "timeline" "push" "analytics" "deadletter" "scaler" }}
{{- if or (ne $role "scaler") (include "herald.hasScaler" $root) }}
{{- $own := get $root.Values $role -}}
{{- $all := deepCopy $root.Values.pods -}}
{{- $_ := include "herald.merge" (list $all (omit $own "lanes" "enabled")) }}
{{- $deployments := default (list (dict "name" "" "lanes" list)) $own.lanes -}}
{{- range $index, $lane := $deployments }}
{{- $values := deepCopy $all -}}
{{- $_ := include "herald.merge" (list $values (omit $lane "name" "lanes")) }}
{{- $name := $role -}}
{{- with $lane.name }}{{- $name = printf "%s-%s" $role . }}{{- end -}}
{{- $scaled := and (ne $root.Values.autoscaling.mode "none") (hasKey $values "autoscaling") (dig "autoscaling" "enabled" false $values) -}}
{{- $workloads = append $workloads (dict "name" $name "role" $role "lane" (default "" $lane.name) "lanes" (default list $lane.lanes) "first" (eq $index 0) "values" $values "autoscaled" (ternary true false $scaled)) -}}
{{- end }}
{{- end }}
{{- end }}
{{- toJson $workloads -}}
{{- end }}

{{/* The selector of a Deployment: (list $ $workload). */}}
{{- define "herald.workloadSelector" -}}
{{- $workload := index . 1 -}}
{{ include "herald.selector" (list (index . 0) $workload.role) }}
{{- with $workload.lane }}
herald.dev/lanes: {{ . | quote }}
{{- end }}
{{- end }}
