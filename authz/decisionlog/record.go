package decisionlog

import (
	"strings"
	"time"
)

// The values of Record.Decision.
const (
	// Allow: the request went on.
	Allow = "allow"
	// Refuse: a policy refused it.
	Refuse = "refuse"
	// Fail: it was refused because no decision came about.
	Fail = "error"
)

// The values of Record.By.
const (
	// ByAuthz: this service decided.
	ByAuthz = "authz"
	// ByEnvoy: an Envoy decided by itself, and reported it.
	ByEnvoy = "envoy"
)

// Record is one decision. Secrets are out of it when it is made, see [Redactor].
type Record struct {
	Time time.Time `json:"time"`
	// ID names the decision; a record that was sent twice has the same one.
	ID        string `json:"decision_id"`
	RequestID string `json:"request_id,omitempty"`
	// Revision is that of the policies that decided; empty if an Envoy did.
	Revision string `json:"revision,omitempty"`
	// By is where the decision was made, Cached whether it was an earlier one.
	By     string `json:"by"`
	Cached bool   `json:"cached,omitempty"`
	// Decision is allow, refuse or error.
	Decision string `json:"decision"`
	// Rule is who refused, as x-writ-denied-by says it: "<Kind> <namespace>/<name>"
	// and the rule. Of a decision that allowed it is empty, Policies are those that
	// were asked.
	Rule     string   `json:"rule,omitempty"`
	Policies []string `json:"policies,omitempty"`
	// Earlier are those that were asked of which not the content of Revision decided, but
	// the one that the proxy's routes went with: "<namespace>/<name>@<fingerprint>".
	Earlier []string `json:"earlier,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	// Observed are the rules that would have refused and only observe.
	Observed []Observation `json:"observed,omitempty"`
	// From is the caller's SPIFFE ID, To the workload's; Proxy is the node id of the
	// Envoy that reported.
	From          string `json:"from,omitempty"`
	To            string `json:"to,omitempty"`
	Proxy         string `json:"proxy,omitempty"`
	SourceAddress string `json:"source_address,omitempty"`
	Method        string `json:"method,omitempty"`
	Host          string `json:"host,omitempty"`
	Path          string `json:"path,omitempty"`
	Status        int    `json:"status,omitempty"`
	// Inputs are what the policies read beyond these, as far as that is known.
	Inputs map[string]string `json:"inputs,omitempty"`
	// Token says why no token was believed.
	Token string `json:"token,omitempty"`
	// Latency is that of the decision, in microseconds.
	Latency int64 `json:"latency_us"`
}

// Observation is a refusal that was not enforced.
type Observation struct {
	Rule   string `json:"rule"`
	Reason string `json:"reason,omitempty"`
}

// The classes of records, by what goes last.
const (
	classRefusal = iota
	classObserved
	classAllow
	classes
)

// kinds name the classes in metrics.
var kinds = [classes]string{"refusal", "observed", "allow"} //nolint:gochecknoglobals // constant

func (r *Record) class() int {
	switch {
	case r.Decision != Allow:
		return classRefusal
	case len(r.Observed) > 0:
		return classObserved
	}
	return classAllow
}

// The bounds of a record, in bytes, so that a full queue is bounded too.
const (
	maxText   = 512
	maxShort  = 128
	maxInput  = 256
	maxInputs = 32
	// maxNames bounds the policies and the observations of a record, in number.
	maxNames = 64
)

// bound cuts what is too long.
func (r *Record) bound() {
	for _, s := range []*string{&r.Reason, &r.Path, &r.Token, &r.Rule} {
		*s = Clip(*s, maxText)
	}
	for _, s := range []*string{&r.RequestID, &r.Revision, &r.Method, &r.SourceAddress} {
		*s = Clip(*s, maxShort)
	}
	for _, s := range []*string{&r.From, &r.To, &r.Proxy, &r.Host} {
		*s = Clip(*s, 2*maxShort)
	}
	r.Observed = r.Observed[:min(len(r.Observed), maxNames)]
	for i := range r.Observed {
		o := &r.Observed[i]
		o.Rule, o.Reason = Clip(o.Rule, maxText), Clip(o.Reason, maxText)
	}
	r.Policies = r.Policies[:min(len(r.Policies), maxNames)]
	r.Earlier = r.Earlier[:min(len(r.Earlier), maxNames)]
	n := 0
	for k, v := range r.Inputs {
		if n++; n > maxInputs || len(k) > maxShort {
			delete(r.Inputs, k)
			continue
		}
		r.Inputs[k] = Clip(v, maxInput)
	}
}

// Clip cuts s to n bytes and lets go of the rest.
func Clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "..."
}
