package authz

import (
	"context"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/writ-mesh/writ/authz/decisionlog"
	"github.com/writ-mesh/writ/authz/recording"
	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/internal/revoked"
)

// verdict is what came out of a check, for the answer, the log and the metrics.
type verdict struct {
	id       string
	revision string
	// names are the policies that the check asked for, "<namespace>/<name>".
	names []string
	// earlier are those of them that were decided by a content which is retired, as the
	// check named them.
	earlier []string
	allow   bool
	// failed says that the denial is not a policy's decision.
	failed bool
	// policy is the one that refused, "<namespace>/<name>"; empty if none did.
	policy string
	// revocation is why a token is revoked that was refused, empty if none was.
	revocation revoked.Reason
	// public is the reason for the client, detail the one for the log.
	public, detail string
	// decisions are those of the policies that allowed, or of the one that refused.
	decisions []rego.Decision
	// status is that of a refusal when no decision sets one.
	status int
	// observed are policies that would have refused, with the reason.
	observed []observation
	tokens   string
	took     time.Duration
	// programs are the policies that were asked; cached says that none of them had to
	// be evaluated.
	programs []*rego.Program
	cached   bool
}

// asked adds a policy that was asked.
func (v *verdict) asked(p *rego.Program, cached bool) {
	v.cached = cached && (v.cached || len(v.programs) == 0)
	v.programs = append(v.programs, p)
}

type observation struct{ policy, reason string }

// newID gives a random UUID (RFC 9562, version 4). It names a decision in logs
// and is no secret.
func newID() string {
	const digits = "0123456789abcdef"
	a, b := rand.Uint64(), rand.Uint64()
	a = a&^0xf000 | 0x4000
	b = b&^(0xc<<60) | 0x8<<60
	var out [36]byte
	n := 0
	for i := range 32 {
		if i == 8 || i == 12 || i == 16 || i == 20 {
			out[n] = '-'
			n++
		}
		w := a
		if i >= 16 {
			w = b
		}
		out[n] = digits[w>>(60-4*(i%16))&0xf]
		n++
	}
	return string(out[:])
}

// decisionLog makes one record of each decision.
type decisionLog struct {
	// what is all, refusals or none.
	what   string
	redact *decisionlog.Redactor
	// add may wait for the moment that a refusal takes to be written.
	add func(*decisionlog.Record)
	// recorder may be nil.
	recorder *recording.Recorder
}

func (l decisionLog) record(req *authv3.CheckRequest, v *verdict) {
	l.offer(req, v)
	if l.what == logNone || (l.what == logRefusals && v.allow && len(v.observed) == 0) {
		return
	}
	l.add(l.recordOf(req, v))
}

func (l decisionLog) recordOf(req *authv3.CheckRequest, v *verdict) *decisionlog.Record {
	a := req.GetAttributes()
	http := a.GetRequest().GetHttp()
	path, _ := l.redact.Path(http.GetPath())
	r := &decisionlog.Record{
		Time: time.Now(), ID: v.id, RequestID: http.GetHeaders()["x-request-id"], Revision: v.revision,
		By: decisionlog.ByAuthz, Decision: decisionlog.Allow, Reason: v.detail, Token: v.tokens,
		From: a.GetSource().GetPrincipal(), To: a.GetDestination().GetPrincipal(),
		SourceAddress: a.GetSource().GetAddress().GetSocketAddress().GetAddress(),
		Method:        http.GetMethod(), Host: http.GetHost(), Path: path,
		Cached:  v.cached,
		Earlier: v.earlier,
		Inputs:  readOf(req, v.programs, l.redact),
		Latency: v.took.Microseconds(),
	}
	switch {
	case v.failed:
		r.Decision = decisionlog.Fail
	case !v.allow:
		r.Decision = decisionlog.Refuse
	default:
		r.Policies = v.names
	}
	if by := v.deniedBy(); by != "" {
		r.Rule = by
	}
	for _, o := range v.observed {
		r.Observed = append(r.Observed, decisionlog.Observation{Rule: regoKind + o.policy, Reason: o.reason})
	}
	return r
}

// regoKind begins the name of a rule of Rego, as in x-writ-denied-by.
const regoKind = "RegoPolicy "

// toLog writes records into the service's own log.
func toLog(log *slog.Logger) func(*decisionlog.Record) {
	return func(r *decisionlog.Record) {
		attrs := make([]slog.Attr, 0, 24)
		add := func(key, value string) {
			if value != "" {
				attrs = append(attrs, slog.String(key, value))
			}
		}
		add("decision_id", r.ID)
		add("revision", r.Revision)
		add("by", r.By)
		add("decision", r.Decision)
		add("rule", r.Rule)
		add("policies", strings.Join(r.Policies, ","))
		add("earlier", strings.Join(r.Earlier, ","))
		add("reason", r.Reason)
		add("from", r.From)
		add("to", r.To)
		add("proxy", r.Proxy)
		add("source_address", r.SourceAddress)
		add("method", r.Method)
		add("host", r.Host)
		add("path", r.Path)
		add("request_id", r.RequestID)
		add("token", r.Token)
		for _, o := range r.Observed {
			attrs = append(attrs, slog.Group("observed", slog.String("rule", o.Rule), slog.String("reason", o.Reason)))
		}
		for _, k := range slices.Sorted(maps.Keys(r.Inputs)) {
			attrs = append(attrs, slog.Group("inputs", slog.String(k, r.Inputs[k])))
		}
		if r.Cached {
			attrs = append(attrs, slog.Bool("cached", true))
		}
		attrs = append(attrs, slog.Int64("latency_us", r.Latency))
		log.LogAttrs(context.Background(), slog.LevelInfo, "decision", attrs...)
	}
}
