{{/* Labels of everything. */}}
{{- define "sekimori.labels" -}}
app.kubernetes.io/part-of: sekimori
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") }}
{{- end }}

{{/* What selects the operator's pods. Never changes: a Deployment's selector cannot. */}}
{{- define "sekimori.operator.selector" -}}
app.kubernetes.io/name: sekimori-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Cluster-wide objects carry the namespace: whoever looks at one sees whose it is. The roles for people have fixed names, so one installation per cluster. */}}
{{- define "sekimori.clusterName" -}}
sekimori-operator-{{ .Release.Namespace }}
{{- end }}

{{- define "sekimori.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default "sekimori-operator" }}
{{- else -}}
{{ required "serviceAccount.create is false: name the ServiceAccount that is there in serviceAccount.name" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* (dict "root" . "image" .Values.images.X) */}}
{{- define "sekimori.image" -}}
{{- $registry := .root.Values.image.registry | trimSuffix "/" -}}
{{- $name := ternary .image.repository (printf "%s/%s" $registry .image.repository) (empty $registry) -}}
{{- if .image.digest -}}
{{ $name }}@{{ .image.digest }}
{{- else -}}
{{ $name }}:{{ .image.tag | default .root.Chart.AppVersion }}
{{- end }}
{{- end }}

{{/* "true" if there is a cluster to ask; `helm template` has none. */}}
{{- define "sekimori.online" -}}
{{- if (lookup "v1" "Namespace" "" "kube-system").metadata }}true{{ end }}
{{- end }}

{{/* The value; else what is recorded; else the cluster's own uid; without a cluster, something that at least does not change from one rendering to the next. */}}
{{- define "sekimori.installationId" -}}
{{- $recorded := (lookup "v1" "ConfigMap" .Release.Namespace "sekimori-installation").data | default dict -}}
{{- $cluster := (lookup "v1" "Namespace" "" "kube-system").metadata | default dict -}}
{{- $fallback := sha256sum (printf "%s/%s" .Release.Namespace .Release.Name) | trunc 32 -}}
{{- coalesce .Values.installationId $recorded.id $cluster.uid $fallback -}}
{{- end }}

{{- define "sekimori.quickstart.namespace" -}}
{{ .Values.quickstart.namespace | default .Release.Namespace }}
{{- end }}

{{/* host:port that `helm test` talks to, or nothing. */}}
{{- define "sekimori.tests.gateway" -}}
{{- if .Values.tests.gateway -}}
{{ .Values.tests.gateway }}
{{- else if .Values.quickstart.enabled -}}
quickstart-smtp.{{ include "sekimori.quickstart.namespace" . }}.svc:25
{{- end }}
{{- end }}

{{- define "sekimori.host" -}}
{{- if contains ":" .Values.bindAddress }}[{{ .Values.bindAddress }}]{{ else }}{{ .Values.bindAddress }}{{ end }}
{{- end }}

{{/* What Pod Security `restricted` asks for. */}}
{{- define "sekimori.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "sekimori.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "sekimori.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}
