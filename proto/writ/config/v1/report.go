package configpb

// What pilot tells Envoys, and authz and operators know, about the reports of requests
// that Envoys decide themselves.
const (
	// ReportDryRunAllow is the tag of a report with the AuthorizationPolicies of the
	// dry run of ALLOW.
	ReportDryRunAllow = "writ.dry_run_allow"
	// RecordRuntimeKey is the key of Envoy's runtime with the percentage of requests
	// that are reported although nothing is the matter with them; 0 unless it is set.
	RecordRuntimeKey = "writ.record"
)

// PoliciesMetadata is the key of the metadata of a call to authz about a connection,
// with the RegoPolicies to decide, each as PolicyRef gives it, separated by commas. In
// a call about a request they are in its context extensions.
const PoliciesMetadata = "x-writ-policies"
